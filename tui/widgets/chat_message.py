"""Messages of the chat: the speaker in a gutter, the text next to it, and the speed of an answer below it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from core.chat.dialogue import Exchange, Reply
from core.text import one_line, sanitize


class ChatMessage(Horizontal):
    """A message of one speaker; plain text only, whatever it looks like."""

    DEFAULT_CSS = """
    ChatMessage {
        height: auto;
        width: 1fr;
        & > .chat-speaker { width: 10; height: auto; text-style: bold; }
        & > .chat-text { width: 1fr; height: auto; }
        &.-user > .chat-speaker { color: $role-user; }
        &.-tuned > .chat-speaker { color: $role-tuned; }
        &.-base > .chat-speaker { color: $role-base; }
    }
    """

    def __init__(self, role: str, speaker: str, text: str = "") -> None:
        super().__init__(classes=f"-{role}")
        self._speaker = Static(Content(one_line(speaker, 9)), classes="chat-speaker")
        self._text = Static(Content(sanitize(text)), classes="chat-text")

    def compose(self) -> ComposeResult:
        """The gutter and the text."""
        yield self._speaker
        yield self._text

    def show(self, speaker: str, text: Content) -> None:
        """Show another text."""
        self._speaker.update(Content(one_line(speaker, 9)))
        self._text.update(text)


class ReplyMessage(ChatMessage):
    """A reply, during its generation and afterwards."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.source, reply.label)
        self.reply = reply

    def on_mount(self) -> None:
        """Show the reply so far."""
        self.refresh_reply()

    def refresh_reply(self) -> None:
        """Update the text from the reply."""
        reply = self.reply
        lines = []
        if reply.text or reply.state in ("streaming", "done"):
            text = sanitize(reply.text).rstrip() if reply.state == "done" else sanitize(reply.text)
            lines.append(Content(text + ("▌" if reply.state == "streaming" else "")))
        if reply.state == "waiting":
            lines.append(Content.styled("…", "$muted"))
        if reply.error:
            lines.append(Content.styled(f"✗ {one_line(reply.error)}", "$limit"))
            if reply.hint:
                lines.append(Content.styled(f"  {one_line(reply.hint)}", "$muted"))
        if reply.state == "stopped":
            lines.append(Content.styled("■ stopped", "$near"))
        if reply.stats:
            lines.append(Content.styled(one_line(reply.stats), "$muted"))
        self.show(reply.label, Content("\n").join(lines))


class ExchangeView(Vertical):
    """A question with its answers: one below the other, or side by side with the class ``-wide``."""

    DEFAULT_CSS = """
    ExchangeView {
        height: auto;
        margin-bottom: 1;
        & > .chat-replies { height: auto; layout: vertical; }
        &.-wide > .chat-replies { layout: horizontal; }
        &.-wide ReplyMessage.-second { border-left: solid $border; padding-left: 1; margin-left: 1; }
    }
    """

    def __init__(self, exchange: Exchange, *, wide: bool) -> None:
        super().__init__(classes="-wide" if wide else None)
        self.exchange = exchange

    def compose(self) -> ComposeResult:
        """The question, then the answers."""
        yield ChatMessage("user", "you", self.exchange.question)
        with Container(classes="chat-replies"):
            for index, reply in enumerate(self.exchange.replies):
                message = ReplyMessage(reply)
                message.set_class(index > 0, "-second")
                yield message

    def message(self, reply: Reply) -> ReplyMessage | None:
        """The widget of a reply."""
        return next((widget for widget in self.query(ReplyMessage) if widget.reply is reply), None)

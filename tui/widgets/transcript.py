"""Transcript of a chat: the speaker in a gutter, the text beside it, and the speed of an answer below.

Answers are shown as Markdown or as written.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, ItemGrid, Vertical, VerticalScroll
from textual.content import Content

from core.chat.dialogue import Dialogue, Exchange, Reply
from core.text import one_line, sanitize
from tui.widgets.markdown_text import MarkdownText
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock, relayout

#: Minimum columns of an answer beside others.
COLUMN_WIDTH = 45
#: Maximum characters of a speaker's name, which is broken into lines.
_NAME = 27


class GrowingText(TextBlock):
    """A text that is laid out again only when its height changes, because that lays out the whole conversation."""

    def show(self, content: Content) -> None:
        """Show another content."""
        if content.is_same(self._content):
            return
        self._content, width = content, self.size.width
        if width and content.get_height(self.styles.get_rules(), width) == self.size.height:
            self.refresh()
        else:
            relayout(self)


class ChatMessage(Horizontal):
    """A message of a speaker; its text is never read as markup."""

    DEFAULT_CSS = style_of("ChatMessage")

    def __init__(self, role: str, speaker: str, text: str = "") -> None:
        super().__init__(classes=f"-{role}")
        self._speaker = GrowingText(Content(_named(speaker)), classes="chat-speaker")
        self._text = GrowingText(Content(sanitize(text)), classes="chat-text")
        self._text.display = True

    def compose(self) -> ComposeResult:
        """The gutter and the text."""
        yield self._speaker
        yield self._text

    def show(self, speaker: str, text: Content) -> None:
        """Show another text."""
        self._speaker.show(Content(_named(speaker)))
        self._text.show(text)


def _named(speaker: str) -> str:
    """The name broken to the gutter's width."""
    name = one_line(speaker, _NAME)
    return "\n".join(name[begin : begin + 9] for begin in range(0, len(name), 9))


class QuestionMessage(ChatMessage):
    """A question, with its number among alternative questions and a mark if keys act on it."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__("user", "you", exchange.question)
        self._question = exchange.question

    def mark(self, *, chosen: bool, place: int, count: int) -> None:
        """Update the marks.

        Args:
            chosen: Keys act on this question.
            place: Its index among the alternatives.
            count: The number of alternatives.
        """
        variant = Content.styled(f"  ‹{place + 1} of {count}›", "$muted") if count > 1 else Content("")
        self.show("▸ you" if chosen else "you", Content.assemble(sanitize(self._question), variant))


class ReplyMessage(ChatMessage):
    """A reply, during and after its generation."""

    def __init__(self, reply: Reply, *, markdown: bool = True) -> None:
        super().__init__("base" if reply.source == "base" else "tuned", reply.label)
        self.reply = reply
        self._markdown = MarkdownText() if markdown else None

    def show_markdown(self, markdown: bool) -> None:
        """Show the answer as Markdown or as written."""
        if markdown != (self._markdown is not None):
            self._markdown = MarkdownText() if markdown else None
            self.refresh_reply()

    def on_mount(self) -> None:
        """Show the reply so far."""
        self.refresh_reply()

    def refresh_reply(self) -> None:
        """Update the text from the reply."""
        reply = self.reply
        lines = []
        if reply.text or reply.state in ("streaming", "done"):
            text = sanitize(reply.text).rstrip() if reply.state == "done" else sanitize(reply.text)
            shown = self._markdown.render(text) if self._markdown is not None else Content(text)
            lines.append(Content.assemble(shown, "▌" if reply.state == "streaming" else ""))
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
    """A question with its answers and the one that was wanted, stacked or, with the class ``-wide``, side by side."""

    DEFAULT_CSS = style_of("ExchangeView")

    def __init__(self, exchange: Exchange, *, width: int, markdown: bool = True) -> None:
        super().__init__()
        self.exchange = exchange
        self._wanted = Reply("wanted", state="done")
        self._cells = [ReplyMessage(reply, markdown=markdown) for reply in (*exchange.replies, self._wanted)]
        for cell in self._cells[1:]:
            cell.add_class("-second")
        cell.add_class("-wanted")
        # A grid gives the answers, and the lines between them, the same height.
        self._grid = ItemGrid(*self._cells, classes="chat-replies")
        self.fit(width)

    def fit(self, width: int) -> None:
        """Put the answers side by side if the columns suffice, with the one that was wanted, if it is known."""
        self._wanted.text, cell = self.exchange.wanted, self._cells[-1]
        cell.display = bool(self._wanted.text)
        if cell.is_mounted:
            cell.refresh_reply()
        columns = len(self._cells) - (not cell.display)
        self._grid.styles.grid_size_columns = columns
        self.set_class(width >= COLUMN_WIDTH * max(2, columns), "-wide")

    def compose(self) -> ComposeResult:
        """The question, then the answers."""
        yield QuestionMessage(self.exchange)
        yield self._grid


class Transcript(VerticalScroll, can_focus=True, inherit_bindings=False):
    """The exchanges; the pane binds the keys."""

    DEFAULT_CSS = "Transcript { height: 1fr; background: transparent; scrollbar-size-vertical: 1; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.markdown = True
        """Show answers as Markdown; otherwise as written."""

    def show(self, dialogue: Dialogue, width: int, pointed_at: Exchange | None) -> None:
        """Show a conversation, scrolled to the end; unchanged exchanges are kept.

        Args:
            dialogue: The conversation.
            width: Columns for the answers.
            pointed_at: The question that keys act on; None for the last.
        """
        path, views = dialogue.exchanges, list(self.query(ExchangeView))
        kept = 0
        while kept < min(len(path), len(views)) and views[kept].exchange is path[kept]:
            kept += 1
        for view in views[kept:]:
            view.remove()
        if new := [ExchangeView(each, width=width, markdown=self.markdown) for each in path[kept:]]:
            self.mount_all(new)
        self.anchor()
        self.call_after_refresh(self.mark, dialogue, pointed_at)

    def fit(self, width: int) -> None:
        """Put answers side by side if the columns suffice."""
        for view in self.query(ExchangeView):
            view.fit(width)

    def mark(self, dialogue: Dialogue, pointed_at: Exchange | None) -> None:
        """Mark the question that keys act on, and the questions with alternatives."""
        path = dialogue.exchanges
        for view in self.query(ExchangeView):
            if view.exchange in path:
                place, count = dialogue.variants(view.exchange)
                for question in view.query(QuestionMessage):
                    question.mark(chosen=view.exchange is pointed_at, place=place, count=count)

    def go_to(self, exchange: Exchange) -> None:
        """Scroll a question to the top."""
        view = next((each for each in self.query(ExchangeView) if each.exchange is exchange), None)
        if view is not None:
            self.release_anchor()
            self.scroll_to_widget(view, animate=False, top=True)

    def refresh_reply(self, reply: Reply) -> None:
        """Update a reply."""
        for widget in self.query(ReplyMessage):
            if widget.reply is reply:
                widget.refresh_reply()

    def toggle_markdown(self) -> None:
        """Toggle between Markdown and the text as written."""
        self.markdown = not self.markdown
        for reply in self.query(ReplyMessage):
            reply.show_markdown(self.markdown)

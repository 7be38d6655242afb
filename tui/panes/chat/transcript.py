"""The transcript: the exchanges of a conversation, one below the other, as far as they are on its path."""

from __future__ import annotations

from textual.containers import VerticalScroll

from core.chat.dialogue import Dialogue, Exchange, Reply
from tui.widgets.chat_message import ExchangeView, QuestionMessage, ReplyMessage


class Transcript(VerticalScroll, can_focus=True, inherit_bindings=False):
    """The exchanges; keys are bound by the pane."""

    DEFAULT_CSS = "Transcript { height: 1fr; background: transparent; scrollbar-size-vertical: 1; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.markdown = True
        """Whether answers are shown as Markdown; else as they were written."""

    def show(self, dialogue: Dialogue, width: int, pointed_at: Exchange | None) -> None:
        """Show a conversation from its end; exchanges that are shown already stay.

        Args:
            dialogue: The conversation.
            width: Columns for answers beside each other.
            pointed_at: The question that keys act on; None for the last one.
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
        """Lay answers out side by side where there is room for them."""
        for view in self.query(ExchangeView):
            view.fit(width)

    def mark(self, dialogue: Dialogue, pointed_at: Exchange | None) -> None:
        """Mark the question that keys act on, and those with other branches."""
        path = dialogue.exchanges
        for view in self.query(ExchangeView):
            if view.exchange in path:
                place, count = dialogue.variants(view.exchange)
                for question in view.query(QuestionMessage):
                    question.mark(chosen=view.exchange is pointed_at, place=place, count=count)

    def go_to(self, exchange: Exchange) -> None:
        """Scroll so that a question is at the top."""
        view = next((each for each in self.query(ExchangeView) if each.exchange is exchange), None)
        if view is not None:
            self.release_anchor()
            self.scroll_to_widget(view, animate=False, top=True)

    def refresh_reply(self, reply: Reply) -> None:
        """Show a reply as it is now."""
        for widget in self.query(ReplyMessage):
            if widget.reply is reply:
                widget.refresh_reply()

    def toggle_markdown(self) -> None:
        """Show answers as Markdown, or as they were written."""
        self.markdown = not self.markdown
        for reply in self.query(ReplyMessage):
            reply.show_markdown(self.markdown)

    def move(self, rows: int) -> None:
        """Scroll by lines."""
        self.scroll_relative(y=rows, animate=False)

    def move_page(self, direction: int) -> None:
        """Scroll by pages."""
        self.scroll_relative(y=direction * max(1, self.size.height - 1), animate=False)

    def move_end(self, direction: int) -> None:
        """Scroll to the beginning or the end."""
        if direction < 0:
            self.scroll_home(animate=False)
        else:
            self.scroll_end(animate=False)

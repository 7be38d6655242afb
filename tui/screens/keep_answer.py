"""Dialog that keeps a good answer as a row of a dataset, after optional edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import TextArea

from core.text import one_line, sanitize
from tui.screens.overlay import Overlay, key_line
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.text_block import TextBlock

_KEYS = (("^s", "append"), ("tab", "next"), ("esc", "leave it"))


@dataclass(frozen=True)
class KeptAnswer:
    """An answer to append to a dataset file."""

    text: str
    """The answer as written by the model, or as edited."""
    file: str
    """The path of the file, as typed."""


class _AnswerArea(TextArea):
    """Editor of the answer; pasted text is sanitized."""

    def __init__(self, text: str) -> None:
        super().__init__(text, soft_wrap=True, tab_behavior="focus", show_line_numbers=False)
        self.cursor_blink = False

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.insert(sanitize(event.text))

    def action_paste(self) -> None:
        """Paste the app's clipboard."""
        self.insert(sanitize(self.app.clipboard))


class KeepAnswer(Overlay[KeptAnswer]):
    """Dialog with the answer and the file; returns both, or nothing.

    Args:
        question: The question, for reference.
        answer: The answer as written by the model.
        file: The last used file; empty for none.
    """

    DEFAULT_CSS = """
    KeepAnswer {
        & > Vertical {
            width: 96; max-width: 100%; height: 80%; max-height: 28; padding: 1 2;
            border: round $border-focus; border-title-style: bold; background: $surface;
        }
        & TextArea {
            height: 1fr; border: none; background: $panel; padding: 0 1;
            &:focus { border: none; }
        }
        & Horizontal { height: auto; margin-top: 1; }
        & .label { width: 8; }
        & SafeInput { width: 1fr; background: $panel; }
        & #keys { margin-top: 1; }
        & #question { max-height: 3; margin-bottom: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "leave", show=False, priority=True),
        Binding("ctrl+s", "accept", "append", show=False, priority=True),
        Binding("tab", "app.focus_next", show=False, priority=True),
        Binding("shift+tab", "app.focus_previous", show=False, priority=True),
    ]
    AUTO_FOCUS = "TextArea"
    TAKES_TEXT = True

    def __init__(self, question: str, answer: str, file: str) -> None:
        super().__init__()
        self._question, self._answer, self._file = question, answer, file

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content("A good answer, for a dataset")
            yield TextBlock(Content.styled(one_line(self._question, 400), "$muted"), id="question")
            yield _AnswerArea(sanitize(self._answer))
            with Horizontal():
                yield TextBlock(Content("file"), classes="label")
                yield SafeInput(self._file, placeholder="answers.jsonl, made where there is none")
            yield TextBlock(id="answer")
            yield TextBlock(key_line(_KEYS), id="keys")

    def action_accept(self) -> None:
        """Return the answer and the file."""
        edited, file = self.query_one(TextArea).text, self.query_one(SafeInput).value.strip()
        says = "" if edited.strip() else "The answer is empty."
        says = says or ("" if file else "Name a file, which is made where there is none.")
        if says:
            self.query_one("#answer", TextBlock).show(Content.styled(f"✗ {says}", "$limit"))
            if not file:
                self.query_one(SafeInput).focus()
            return
        # An unedited answer is kept as written, not as sanitized for the editor.
        self.dismiss(KeptAnswer(self._answer if edited == sanitize(self._answer) else edited, file))

    @on(SafeInput.Submitted)
    def _submitted(self, message: SafeInput.Submitted) -> None:
        message.stop()
        self.action_accept()

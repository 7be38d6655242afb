"""The form of an evaluation: a file of prompts, the models that answer it, and how they are scored."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content

from core.chat.request import BASE
from core.errors import UserError
from core.evaluation.check import Check
from core.evaluation.record import EvaluationRecord, newest_record
from core.evaluation.request import EvaluationRequest
from core.paths import working_directory
from core.text import one_line
from tui.screens.overlay import INPUT_BINDINGS, Overlay, key_line
from tui.widgets.forms.path_input import NameSuggester, PathInput
from tui.widgets.forms.safe_input import SafeInput
from tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from core.runs.record.store import Run

_KEYS = (("enter", "ask them"), ("tab", "next"), ("→", "complete"), ("^r", "last result"), ("esc", "leave"))
_ABOUT = "Greedy answers to each prompt, scored against what is expected, and compared with the first model's."
SUFFIXES = (".jsonl", ".ndjson", ".txt", ".md", ".json", ".csv", ".tsv", ".parquet", ".arrow")


class EvaluationForm(Overlay[EvaluationRequest | EvaluationRecord]):
    """The dialog that asks for an evaluation; returns what is asked for, the newest result that is kept, or nothing.

    Args:
        run: The run whose model is compared; None where there is none.
    """

    DEFAULT_CSS = """
    EvaluationForm {
        & > VerticalScroll {
            width: 96; max-width: 100%; height: auto; max-height: 90%; padding: 1 2;
            border: round $border-focus; border-title-style: bold; background: $surface; scrollbar-size-vertical: 1;
        }
        & .label { width: 13; }
        & SafeInput { width: 1fr; background: $panel; }
        & Horizontal { height: auto; margin-top: 1; }
        & #keys { margin-top: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *INPUT_BINDINGS,
        Binding("ctrl+r", "show_last", "the last result", show=False, priority=True),
    ]
    AUTO_FOCUS = "#line-prompts"
    TAKES_TEXT = True

    def __init__(self, run: Run | None) -> None:
        super().__init__()
        self._run = run
        held_out = "empty: what the run holds out" if run is not None else "one a line, or a dataset"
        self._lines: dict[str, SafeInput] = {
            "prompts": PathInput(suffixes=SUFFIXES, placeholder=f"JSONL; {held_out}", id="line-prompts"),
            "models": SafeInput(
                run.id if run is not None else "", placeholder="RUN, RUN@STEP, a model or a GGUF file", id="line-models"
            ),
            "against": SafeInput(
                BASE if run is not None else "", placeholder="base, or as above; blanks between them", id="line-against"
            ),
            "check": SafeInput(placeholder="a program of yours that scores each answer", id="line-check"),
            "limit": SafeInput(placeholder="the first so many prompts", id="line-limit"),
        }
        for name in ("models", "against"):
            self._lines[name].suggester = NameSuggester(working_directory(), (".gguf",))
        for line in self._lines.values():
            # Typed text replaces the value.
            line.select_all()

    def compose(self) -> ComposeResult:
        """An input for each part, the error, and the keys."""
        with VerticalScroll(can_focus=False) as box:
            box.border_title = Content("Evaluate")
            yield TextBlock(Content.styled(_ABOUT, "$muted"))
            for name, line in self._lines.items():
                with Horizontal():
                    yield TextBlock(Content(name), classes="label")
                    yield line
            yield TextBlock(id="answer")
            yield TextBlock(key_line(_KEYS), id="keys")

    def on_key(self, event: events.Key) -> None:
        """Keys typed before the first input had the focus are its text all the same."""
        if not isinstance(self.focused, SafeInput):
            self._lines["prompts"].take_key(event)

    @on(SafeInput.Submitted)
    def _submitted(self, message: SafeInput.Submitted) -> None:
        message.stop()
        try:
            self.dismiss(self._request())
        except UserError as error:
            self._refuse(error)

    @work(exclusive=True)
    async def action_show_last(self) -> None:
        """Show the newest result that is kept."""
        try:
            _, record = await asyncio.to_thread(newest_record, self._run)
        except UserError as error:
            self._refuse(error)
        else:
            self.dismiss(record)

    def _refuse(self, error: UserError) -> None:
        said = f"✗ {one_line(error.message, 200)} {one_line(error.hint, 200)}".rstrip()
        self.query_one("#answer", TextBlock).show(Content.styled(said, "$limit"))

    def _request(self) -> EvaluationRequest:
        """What is asked for.

        Raises:
            UserError: If a line of it cannot be meant.
        """
        texts = {name: line.value.strip() for name, line in self._lines.items()}
        prompts = self._lines["prompts"]
        if not texts["models"]:
            raise UserError("No model is named.", "Name a run, or a model.")
        if texts["check"]:
            Check.parse(texts["check"])
        limit = texts["limit"]
        if limit and not (limit.isascii() and limit.isdecimal() and 0 < len(limit) < 10 and int(limit)):
            raise UserError(f"The limit must be a whole number above 0, not {one_line(limit, 20)}.")
        path = str(prompts.resolved()) if isinstance(prompts, PathInput) and texts["prompts"] else None
        return EvaluationRequest(
            _words(texts["models"]),
            _words(texts["against"]),
            path,
            int(limit) if limit else None,
            None,
            texts["check"] or None,
        )

    @on(SafeInput.Cancelled)
    def _cancelled(self, message: SafeInput.Cancelled) -> None:
        message.stop()
        self.dismiss(None)


def _words(text: str) -> tuple[str, ...]:
    """The names in a line; one with blanks in it stands in quotes.

    Raises:
        UserError: If a quote is open.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"'{one_line(text, 80)}' has an open quote.", "Close it.") from error

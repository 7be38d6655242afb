"""The screen of an evaluation: its progress, then the table, and the answers to scroll through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from core.errors import UserError
from core.evaluation.evaluation import Evaluation
from core.evaluation.record import EvaluationRecord
from core.evaluation.report import summary_lines, to_jsonl, to_markdown
from core.evaluation.request import EvaluationRequest
from core.evaluation.table import EvaluationTable
from core.jobs.job import JobCancelledError, JobProgress
from core.text import one_line
from tui.keys import bindings
from tui.saving import save_text
from tui.screens.evaluation.rows import EvaluationRows
from tui.screens.job import Ended, Progressed, follow, progress_bar
from tui.screens.overlay import Overlay
from tui.shell import shell_of
from tui.widgets.text_block import TextBlock


@dataclass
class Prepared(Message):
    """Models are found and prompts read."""


#: An evaluation that has ended.
Compared = tuple[EvaluationRecord, EvaluationTable]


class RowWindow(Widget):
    """The rows around the cursor, as many as there is room for."""

    def __init__(self, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self.rows: EvaluationRows | None = None

    def render(self) -> Content:
        return self.rows.lines(self.size.height, max(self.size.width, 20)) if self.rows is not None else Content("")


class EvaluationScreen(Overlay[None]):
    """An evaluation, from its first question to its table.

    Args:
        asked: What is asked for, or what was answered already.
    """

    DEFAULT_CSS = """
    EvaluationScreen > Vertical {
        width: 100%; height: 1fr; margin: 1 0; padding: 0 1;
        border: round $border-focus; border-title-style: bold; border-subtitle-color: $muted; background: $surface;
    }
    EvaluationScreen #table { margin-bottom: 1; max-height: 50%; }
    EvaluationScreen #head { color: $muted; }
    EvaluationScreen #rows { height: 2fr; min-height: 3; }
    EvaluationScreen VerticalScroll { height: 3fr; border-top: solid $border; scrollbar-size-vertical: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("evaluation")]
    SCOPE = "evaluation"

    def __init__(self, asked: EvaluationRequest | EvaluationRecord) -> None:
        super().__init__()
        self._asked = asked
        self._evaluation: Evaluation | None = None
        self._progress: JobProgress | None = None
        self._ended: Ended[Compared] | None = None
        self._rows: EvaluationRows | None = None

    def compose(self) -> ComposeResult:
        """The table or the progress, the rows, and the answers to the one under the cursor."""
        with Vertical() as box:
            box.border_title = Content("Evaluation")
            yield TextBlock(id="table")
            yield TextBlock(id="head")
            yield RowWindow(id="rows")
            with VerticalScroll(can_focus=False):
                yield TextBlock(id="detail")

    def on_mount(self) -> None:
        """Begin, or show what there is."""
        self._show()
        if isinstance(self._asked, EvaluationRecord):
            self._compare(self._asked)
        else:
            self._run(self._asked)

    def on_resize(self) -> None:
        """Lay the table out for its width, which is known once the screen has been laid out."""
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        if self._rows is not None and self.query("#detail"):  # neither before its parts are there nor after
            self._show()

    def on_unmount(self) -> None:
        """Cancel what is on; what is answered is kept."""
        if self._evaluation is not None:
            self._evaluation.cancel()

    @work(thread=True, group="evaluation")
    def _compare(self, record: EvaluationRecord) -> None:
        # Millions of draws, of many prompts.
        self.post_from_thread(Ended((record, EvaluationTable.of(record))))

    @work(thread=True, group="evaluation")
    def _run(self, request: EvaluationRequest) -> None:
        def run(progress: Callable[[JobProgress], None]) -> Compared:
            evaluation = self._evaluation = request.prepare()
            if not self.is_running:  # it was left before there was anything to cancel
                raise JobCancelledError
            self.post_from_thread(Prepared())
            record = evaluation.run(progress)
            return record, EvaluationTable.of(record)

        follow(self, run)

    @on(Prepared)
    def _prepared(self) -> None:
        self._show()

    @on(Progressed)
    def _progressed(self, message: Progressed[JobProgress]) -> None:
        self._progress = message.progress
        self._show()

    @on(Ended)
    def _has_ended(self, message: Ended[Compared]) -> None:
        self._ended = message
        if message.result is not None:
            self._rows = EvaluationRows(*message.result)
        self._show()

    def _show(self) -> None:
        rows, ended = self._rows, self._ended
        for name in ("#head", "#rows"):
            self.query_one(name).display = rows is not None
        self.query_one(VerticalScroll).display = rows is not None
        box, keys = self.query_one(Vertical), shell_of(self).keys
        if rows is None:
            self.query_one("#table", TextBlock).show(self._text())
            leaves = "close" if ended is not None else "cancel"
            box.border_subtitle = Content(f"{keys['evaluation.back'].display} {leaves}")
            return
        width = self.query_one("#table").content_size.width
        lines = summary_lines(rows.record, rows.table, width or None)
        self.query_one("#table", TextBlock).show(Content("\n").join(map(Content, lines)))
        self.query_one("#head", TextBlock).show(Content.styled(rows.head(), "$muted"))
        window = self.query_one(RowWindow)
        window.rows = rows
        window.refresh()
        self.query_one("#detail", TextBlock).show(rows.detail())
        filters = ["filter", "against"][: len(rows.table.comparisons)]
        box.border_subtitle = Content(
            keys.hints(f"evaluation.{name}" for name in ("read", *filters, "save", "lines", "back"))
        )

    def _text(self) -> Content:
        """What is said before there is a table."""
        ended = self._ended
        if ended is not None and ended.error is not None:
            is_kept = self._evaluation is not None and self._evaluation.record.done > 0
            kept = "\n\nWhat was answered is kept: the same request goes on with it." if is_kept else ""
            head = Content.styled("It was not carried through.", "bold")
            return Content.assemble(
                head, f" {one_line(ended.error.message, 600)}\n{one_line(ended.error.hint, 400)}{kept}"
            )
        evaluation, progress = self._evaluation, self._progress
        if isinstance(self._asked, EvaluationRecord):
            return Content("Comparing the answers …")
        if evaluation is None:
            return Content("Looking for the models and reading the prompts …")
        names = ", ".join(one_line(target.name, 60) for target in evaluation.targets)
        text = f"{len(evaluation.prompts.items)} prompts of {one_line(evaluation.prompts.name, 100)}\nto {names}\n\n"
        if progress is None:
            return Content(text)
        kept = "  (goes on with what was kept)" if evaluation.is_continued else ""
        return Content.assemble(
            text,
            progress_bar(progress.share or 0.0, shell_of(self).glyphs),
            f"  {progress.done} of {progress.total}{kept}\n{one_line(progress.activity, 120)}",
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Without a table there is only the way out."""
        del parameters
        mine = ("move", "move_page", "move_end", "read", "filter", "turn", "save", "save_lines")
        return self._rows is not None if action in mine else True

    def action_back(self) -> None:
        """Leave; what is on is cancelled."""
        self.dismiss(None)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        if self._rows is not None:
            self._rows.move(by)
            self._show()
            self.query_one(VerticalScroll).scroll_home(animate=False)

    def action_move_page(self, by: int) -> None:
        """Move the cursor by pages."""
        self.action_move(by * max(self.query_one(RowWindow).size.height, 1))

    def action_move_end(self, direction: int) -> None:
        """Move the cursor to the first or the last row."""
        if self._rows is not None:
            self.action_move(direction * len(self._rows.record.items))

    def action_read(self, by: int) -> None:
        """Scroll in the answers by pages."""
        answers = self.query_one(VerticalScroll)
        answers.scroll_relative(y=by * max(answers.size.height - 1, 1), animate=False)

    def action_filter(self) -> None:
        """Show the rows that are won, those that are lost, or all."""
        if self._rows is not None:
            self._rows.turn_filter()
            self._show()

    def action_turn(self) -> None:
        """Compare with the next model."""
        if self._rows is not None:
            self._rows.turn_comparison()
            self._show()

    def action_save(self) -> None:
        """Save it as Markdown."""
        self._save(".md", to_markdown)

    def action_save_lines(self) -> None:
        """Save it as JSON lines."""
        self._save(".jsonl", to_jsonl)

    @work(thread=True, group="save")
    def _save(self, suffix: str, written_by: Callable[[EvaluationRecord, EvaluationTable], str]) -> None:
        if self._rows is None:
            return
        try:
            text = written_by(self._rows.record, self._rows.table)
            said = f"It is in {one_line(str(save_text('evaluation', suffix, text)), 200)}"
        except UserError as error:
            said = f"It is not saved: {one_line(error.message, 200)}"
        self.notify(said, markup=False)

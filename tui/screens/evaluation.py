"""Screens of an evaluation: the form, the progress, and the results with their answers."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget

from core.chat.request import BASE
from core.errors import UserError
from core.evaluation.check import Check
from core.evaluation.evaluation import Evaluation, EvaluationRequest
from core.evaluation.flips import Flips, chance_line, flips_line, flips_of
from core.evaluation.record import EvaluationRecord, newest_record
from core.evaluation.report import summary_lines, to_jsonl, to_markdown
from core.evaluation.table import TITLES, Comparison, EvaluationTable, Outcome
from core.jobs.job import JobProgress
from core.jobs.running import RunningJob
from core.paths import working_directory
from core.runs.catalog.trained import find_run_at
from core.runs.record.sentences import brief_id
from core.text import one_line, sanitize
from core.units import format_fixed
from tui.glyphs import GlyphSet
from tui.jobs import NOTHING, JobPage
from tui.keys import bindings
from tui.messages import AskWhy
from tui.screens.box import FormScreen, InputForm, RecordBox, save_files
from tui.screens.job import progress_text
from tui.screens.overlay import Overlay
from tui.shell import shell_of
from tui.widgets.forms.inputs import NameSuggester, PathInput, SafeInput
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from core.runs.record.store import Run

Shown = Literal["all", "won", "lost", "flipped"]
_ORDER: tuple[Shown, ...] = ("all", "won", "lost", "flipped")
MARKS: dict[Outcome, tuple[str, str]] = {
    "won": ("+ won ", "$success"),
    "lost": ("- lost", "$error"),
    "same": ("  same", "$muted"),
}
#: Marks of answers that went wrong → right, and right → wrong.
_FLIPS = {True: ("+ right", "$success"), False: ("- wrong", "$error")}
#: Most columns of a prompt's id.
_ID_WIDTH = 20
#: Rows of the terminal from which flipped answers have the table of scores above them.
ROOMY = 30


@dataclass
class EvaluationRows:
    """Rows of a record, compared with a single model at a time.

    Args:
        record: The record.
        table: Its table.
    """

    record: EvaluationRecord
    table: EvaluationTable
    shown: Shown = "all"
    against: int = 0
    """Index of the comparison in view."""
    cursor: int = 0
    """Index of the row under the cursor, among the rows in view."""
    first: int = 0
    """Index of the row at the top."""
    places: list[int] = field(init=False)
    """Indices of the questions in view."""

    def __post_init__(self) -> None:
        self._flips = flips_of(self.record, self.table.deciding)
        names = [one_line(item.id, 200) for item in self.record.items]
        files = {name.rpartition(":")[0] for name in names}
        # Rows of a single file are told apart by their lines.
        self._names = names if len(files) > 1 else [name.rpartition(":")[2] for name in names]
        self._name_width = max(min(max(map(len, self._names), default=0), _ID_WIDTH), 6)
        self._choose()

    @property
    def flips(self) -> Flips | None:
        """The flipped answers of the comparison in view; None with a single model."""
        return self._flips[self.against % len(self._flips)] if self._flips else None

    @property
    def comparison(self) -> Comparison | None:
        """The comparison in view; None with a single model."""
        comparisons = self.table.comparisons
        return comparisons[self.against % len(comparisons)] if comparisons else None

    @property
    def place(self) -> int | None:
        """Index of the question under the cursor; None if none is in view."""
        return self.places[self.cursor] if self.places else None

    def _choose(self) -> None:
        comparison, flips = self.comparison, self.flips
        if comparison is None or flips is None or self.shown == "all":
            self.places = list(range(len(self.record.items)))
        elif self.shown == "flipped":
            self.places = [*flips.broken, *flips.mended]
        else:
            self.places = [*(comparison.won if self.shown == "won" else comparison.lost)]
        self.cursor = self.first = 0

    def turn_filter(self) -> None:
        """Cycle between all, won, lost and flipped rows."""
        if self.comparison is not None:
            self.shown = _ORDER[(_ORDER.index(self.shown) + 1) % len(_ORDER)]
            self._choose()

    def turn_comparison(self) -> None:
        """Compare with the next model."""
        if len(self.table.comparisons) > 1:
            self.against = (self.against + 1) % len(self.table.comparisons)
            self._choose()

    def move(self, by: int) -> None:
        """Move the cursor."""
        self.cursor = min(max(self.cursor + by, 0), max(len(self.places) - 1, 0))

    def outcome(self, place: int) -> Outcome:
        """The outcome of a question."""
        return self.comparison.outcome(place) if self.comparison is not None else "same"

    def head(self) -> str:
        """Heading of the rows in view, as ``won: 3 of 12 against base``."""
        comparison, flips = self.comparison, self.flips
        if comparison is None or flips is None:
            return f"{len(self.places)} prompts"
        if self.shown == "flipped":
            return "\n".join(filter(None, (flips_line(flips), chance_line(flips))))
        against = f" against {one_line(comparison.against, 40)}"
        if self.shown == "all":
            return f"all {len(self.places)}: {len(comparison.won)} won, {len(comparison.lost)} lost{against}"
        return f"{self.shown}: {len(self.places)} of {len(self.record.items)}{against}"

    def lines(self, height: int, width: int) -> Content:
        """Rows around the cursor."""
        height = max(height, 1)
        self.first = min(max(self.first, self.cursor - height + 1), self.cursor)
        shown = self.places[self.first : self.first + height]
        if not shown:
            return Content.styled("There are none." if self.shown != "all" else "There is no prompt.", "$muted")
        return Content("\n").join(
            self._line(place, width, is_chosen=number == self.cursor) for number, place in enumerate(shown, self.first)
        )

    def _line(self, place: int, width: int, *, is_chosen: bool) -> Content:
        item = self.record.items[place]
        way = self.flips.is_mended(place) if self.flips is not None and self.shown == "flipped" else None
        mark, style = MARKS[self.outcome(place)] if way is None else _FLIPS[way]
        front = "▸ " if is_chosen else "  "
        name = self._names[place]
        name = name if len(name) <= _ID_WIDTH else f"…{name[1 - _ID_WIDTH :]}"
        head = Content.assemble(front, (mark, style), f"  {name:<{self._name_width}} ")
        question = one_line(item.question, max(width - head.cell_length, 4))
        return head + (Content.styled(question, "bold") if is_chosen else Content(question))

    def detail(self) -> Content:
        """The question under the cursor with its expected answer, and each answer with its scores."""
        place = self.place
        if place is None:
            return Content("")
        item = self.record.items[place]
        parts = [Content.styled(f"prompt {one_line(item.id, 200)}", "$muted"), Content(sanitize(item.question))]
        if item.expected is not None:
            parts += [Content.styled("expected", "$muted"), Content(sanitize(item.expected))]
        comparison = self.comparison
        names = list(self.record.targets[:1])
        names += [comparison.against] if comparison is not None else []
        names += [name for name in self.record.targets if name not in names]
        for name in names:
            answer = self.record.answers[name][place]
            found = answer.scores if answer is not None else {}
            scores = ", ".join(
                f"{TITLES[metric]} {format_fixed(found[metric], 2)}" for metric in self.table.metrics if metric in found
            )
            head = Content.assemble((one_line(name, 60), "$primary bold"), (f"  {scores}" if scores else "", "$muted"))
            text = sanitize(answer.text) if answer is not None else ""
            parts += [head, Content(text) if text.strip() else Content.styled("–", "$muted")]
        return Content("\n").join(parts)


_KEYS = (("enter", "ask them"), ("tab", "next"), ("→", "complete"), ("^r", "last result"), ("esc", "leave"))
_ABOUT = "Greedy answers to each prompt, scored against what is expected, and compared with the first model's."
SUFFIXES = (".jsonl", ".ndjson", ".txt", ".md", ".json", ".csv", ".tsv", ".parquet", ".arrow")


class EvaluationForm(FormScreen[EvaluationRequest | EvaluationRecord]):
    """Form of an evaluation; returns the request, the newest kept record, or nothing.

    Args:
        run: The run whose model is compared; None for none.
    """

    DEFAULT_CSS = style_of("EvaluationForm")
    HELP = "evaluate"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "show_last", "the last result", show=False, priority=True)
    ]

    def __init__(self, run: Run | None) -> None:
        self._run = run
        held_out = "empty: what the run holds out" if run is not None else "one a line, or a dataset"
        name, base = (run.id, BASE) if run is not None else ("", "")
        lines: dict[str, SafeInput] = {
            "prompts": PathInput(suffixes=SUFFIXES, placeholder=f"JSONL; {held_out}", id="line-prompts"),
            "models": SafeInput(name, placeholder="RUN, RUN@STEP, a model or a GGUF file", id="line-models"),
            "against": SafeInput(base, placeholder="base, or as above; blanks between them", id="line-against"),
            "check": SafeInput(placeholder="a program of yours that scores each answer", id="line-check"),
            "limit": SafeInput(placeholder="the first so many prompts", id="line-limit"),
        }
        for models in ("models", "against"):
            lines[models].suggester = NameSuggester(working_directory(), (".gguf",))
        rows = {name: (name, line, "") for name, line in lines.items()}
        super().__init__(InputForm("Evaluate", rows, _KEYS, Content.styled(_ABOUT, "$muted")))

    def take(self) -> None:
        """Return the request, if it is valid."""
        try:
            self.dismiss(self._request())
        except UserError as error:
            self._refuse(error)

    @work(exclusive=True)
    async def action_show_last(self) -> None:
        """Show the newest kept record."""
        try:
            _, record = await asyncio.to_thread(newest_record, self._run)
        except UserError as error:
            self._refuse(error)
        else:
            self.dismiss(record)

    def _refuse(self, error: UserError) -> None:
        self._form.answer(f"✗ {one_line(error.message, 200)} {one_line(error.hint, 200)}".rstrip())

    def _request(self) -> EvaluationRequest:
        """The request as typed.

        Raises:
            UserError: If an input is invalid.
        """
        texts, prompts = self._form.texts, self._form.lines["prompts"]
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


def _words(text: str) -> tuple[str, ...]:
    """Split names at blanks; quotes protect blanks in a name.

    Raises:
        UserError: If a quote is not closed.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"'{one_line(text, 80)}' has an open quote.", "Close it.") from error


#: Seconds of loading and of an answer, before any was measured.
_LOADING_SECONDS, _SECONDS_PER_ANSWER = 20.0, 2.0
#: The result of an evaluation.
Compared = tuple[EvaluationRecord, EvaluationTable]


class RowWindow(Widget):
    """Rows around the cursor, as many as fit."""

    def __init__(self, rows: EvaluationRows, *, id: str) -> None:  # noqa: A002
        super().__init__(id=id)
        self._rows = rows

    def render(self) -> Content:
        return self._rows.lines(self.size.height, max(self.size.width, 20))


class EvaluationPage(JobPage[JobProgress, Compared]):
    """An evaluation, whose result has a screen of its own.

    Args:
        asked: The request to run, or an existing record.
    """

    def __init__(self, asked: EvaluationRequest | EvaluationRecord) -> None:
        names = asked.targets if isinstance(asked, EvaluationRequest) else tuple(asked.targets)
        super().__init__(RunningJob("evaluation", one_line(brief_id(names[0]), 60)), "Evaluation")
        self._asked = asked
        self._evaluation: Evaluation | None = None

    @property
    def keeps(self) -> str:
        """The parts of it that are kept if it is ended now."""
        is_kept = self._evaluation is not None and self._evaluation.record.done > 0
        return "what was answered is kept, and the same request goes on with it" if is_kept else NOTHING

    def run(self, tell: Callable[[JobProgress], None]) -> Compared:
        """Ask and score, or compare the existing record: the bootstrap draws millions of numbers."""
        record = self._asked
        if not isinstance(record, EvaluationRecord):
            tell(JobProgress("looking for the models and reading the prompts"))
            evaluation = self._evaluation = record.prepare(tell)
            self.job.expected = _LOADING_SECONDS + _SECONDS_PER_ANSWER * evaluation.record.total
            record = evaluation.run(tell)
        return record, EvaluationTable.of(record)

    def close(self) -> None:
        """End it; finished answers are kept."""
        if self._evaluation is not None:
            self._evaluation.cancel()

    def outcome(self) -> str:
        """The rows won and lost."""
        return f"{EvaluationRows(*self.job.result).head()}." if self.job.result is not None else ""

    def text(self, room: int, glyphs: GlyphSet) -> Content:  # noqa: ARG002
        """The models and the progress."""
        evaluation = self._evaluation
        if evaluation is None:
            return progress_text(self.job, glyphs)
        names = ", ".join(one_line(target.name, 60) for target in evaluation.targets)
        kept = "; goes on with what was kept" if evaluation.is_continued else ""
        record = evaluation.record
        head = f"{len(evaluation.prompts.items)} prompts of {one_line(evaluation.prompts.name, 100)}\nto {names}\n"
        head += f"{record.done} of {record.total} answers{kept}\n\n"
        return Content(head) + progress_text(self.job, glyphs)

    def result_screen(self) -> Screen[None] | None:
        """The results."""
        return EvaluationScreen(*self.job.result) if self.job.result is not None else None


class EvaluationScreen(Overlay[None]):
    """Results of an evaluation.

    Args:
        record: The record.
        table: Its table.
        shown: The rows in view at first.
        notes: Sentences about everything that is not compared.
    """

    DEFAULT_CSS = style_of("EvaluationScreen")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("evaluation")]
    SCOPE = "evaluation"

    def __init__(
        self, record: EvaluationRecord, table: EvaluationTable, *, shown: Shown = "all", notes: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._rows = EvaluationRows(record, table, shown)
        self._notes = notes

    def compose(self) -> ComposeResult:
        """The table, the rows, and the answers to the question under the cursor."""
        with RecordBox("Flipped answers" if self._rows.shown == "flipped" else "Evaluation"):
            yield TextBlock(id="table")
            yield TextBlock(id="head")
            yield RowWindow(self._rows, id="rows")
            with VerticalScroll(can_focus=False):
                yield TextBlock(id="detail")

    def on_mount(self) -> None:
        """Show the results."""
        self._show()

    def on_resize(self) -> None:
        """Lay out the table for its width, which is known after the layout."""
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        if self.query("#detail"):  # neither before its parts are there nor after
            self._show()

    def _show(self) -> None:
        rows, box, keys = self._rows, self.query_one(RecordBox), shell_of(self).keys
        width = self.query_one("#table").content_size.width
        # Flips have their own figures, which leave room for rows on a short terminal.
        is_short = rows.shown == "flipped" and self.size.height < ROOMY
        lines = [] if is_short else summary_lines(rows.record, rows.table, width or None)
        notes = [Content.styled(one_line(note, 400), "$muted") for note in self._notes]
        parts = {"#table": [*map(Content, lines), *notes], "#head": [Content.styled(rows.head(), "$muted")]}
        for name, content in parts.items():
            self.query_one(name, TextBlock).show(Content("\n").join([] if self.has_class("-row") else content))
        self.query_one(RowWindow).refresh()
        self.query_one("#detail", TextBlock).show(rows.detail())
        filters = ["filter", "against"][: len(rows.table.comparisons)]
        names = (
            ("read", "why", "back") if self.has_class("-row") else ("open", "why", *filters, "save", "lines", "back")
        )
        box.show_hints(keys.named(f"evaluation.{name}" for name in names))

    def entries(self) -> Sequence[tuple[int, str]]:
        """The prompts that ``/`` finds."""
        return [(number, self._rows.record.items[place].question) for number, place in enumerate(self._rows.places)]

    def point_at(self, place: int) -> None:
        """Move the cursor to a prompt."""
        self.action_move(place - self._rows.cursor)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self._rows.move(by)
        self._show()
        self.query_one(VerticalScroll).scroll_home(animate=False)

    def action_move_page(self, by: int) -> None:
        """Move the cursor by pages."""
        self.action_move(by * max(self.query_one(RowWindow).size.height, 1))

    def action_move_end(self, direction: int) -> None:
        """Move the cursor to the first or the last row."""
        self.action_move(direction * len(self._rows.record.items))

    def action_read(self, by: int) -> None:
        """Scroll the answers by pages."""
        answers = self.query_one(VerticalScroll)
        answers.scroll_relative(y=by * max(answers.size.height - 1, 1), animate=False)

    def action_open(self) -> None:
        """Show the row under the cursor alone: question, expected answer, and both answers."""
        if self._rows.place is not None:
            self.add_class("-row")
            self._show()

    def action_back(self) -> None:
        """Go back from a row to the rows, else leave."""
        if not self.has_class("-row"):
            self.dismiss(None)
            return
        self.remove_class("-row")
        self._show()

    def action_why(self) -> None:
        """Ask for the training rows behind the first model's answer to the prompt under the cursor."""
        rows, place = self._rows, self._rows.place
        answer = rows.record.answers[rows.record.targets[0]][place] if place is not None else None
        if place is None or answer is None:
            return
        try:
            run, step = find_run_at(rows.record.targets[0])
        except UserError as error:
            self.notify(f"Only a run can say why. {error.message}", severity="warning", markup=False)
            return
        item = rows.record.items[place]
        self.post_message(AskWhy(run, step, item.messages, answer.text, item.expected or ""))

    def action_filter(self) -> None:
        """Cycle between all, won, lost and flipped rows."""
        self._rows.turn_filter()
        self._show()

    def action_turn(self) -> None:
        """Compare with the next model."""
        self._rows.turn_comparison()
        self._show()

    def action_save(self) -> None:
        """Save as Markdown."""
        self._save(".md", to_markdown)

    def action_save_lines(self) -> None:
        """Save as JSON lines."""
        self._save(".jsonl", to_jsonl)

    @work(thread=True, group="save")
    def _save(self, suffix: str, write: Callable[[EvaluationRecord, EvaluationTable], str]) -> None:
        said = save_files({"evaluation": write(self._rows.record, self._rows.table)}, suffix)
        self.notify(said, markup=False)

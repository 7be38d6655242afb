"""Comparison of runs: overlaid curves, tables of figures and differing options, and sample answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from core.errors import UserError
from core.evaluation.flips import flips_line
from core.evaluation.run_answers import RunAnswers, answers_of_runs, answers_to_markdown
from core.runs.catalog.compare import (
    AXES,
    LETTERS,
    Axis,
    ComparedAnswers,
    Fact,
    RunComparison,
    RunRecord,
    compare_runs,
    read_record,
    to_csv,
    to_curves_csv,
    to_markdown,
)
from core.runs.record.history import is_long, read_glimpse
from core.runs.record.series import METRICS, Series
from core.runs.record.store import Run
from core.text import one_line, sanitize, steady
from tui.keys import bindings
from tui.screens.box import RecordBox, Way, save_files, scroll
from tui.screens.evaluation import EvaluationScreen
from tui.screens.overlay import Overlay
from tui.shell import shell_of
from tui.widgets.charts.chart_data import STEPS, TIME, TOKENS, ChartData, Curve
from tui.widgets.charts.line_chart import LineChart
from tui.widgets.strips import fit, style_of
from tui.widgets.text_block import TextBlock, side_by_side

#: Columns of the names of facts, and least columns of a value.
_NAME_WIDTH, _LEAST = 24, 7
#: Columns of an answer from which answers stand side by side.
_BESIDE = 36


def curve_style(place: int) -> str:
    """The color of a run, as in the chart."""
    return f"$curve-{place + 1}"


def fact_tables(comparison: RunComparison, width: int) -> Content:
    """Tables of figures and of differing data and options; the best value of a figure is bold and starred."""
    count = len(comparison.records)
    name_width = min(_NAME_WIDTH, max(width // 3, 10))
    column = max(min((width - name_width) // count - 2, 30), _LEAST)
    lines: list[Content] = []
    groups = (
        ("", comparison.figures),
        ("data that differ", comparison.data),
        ("options that differ", comparison.options),
    )
    for title, facts in groups:
        if facts:
            lines += [Content("")] if lines else []
            lines.append(_head(comparison, title, name_width, column))
            lines += [_fact_line(fact, name_width, column) for fact in facts]
    if comparison.curve is not None:
        lines += [Content(""), Content.styled("learning curve", "$muted bold")]
        lines += [line for text in comparison.curve.lines() for line in Content(text).wrap(width)]
    if not comparison.data and not comparison.options:
        lines += [Content(""), Content.styled("Options and data are the same.", "$muted")]
    return Content("\n").join(lines)


def _head(comparison: RunComparison, title: str, name_width: int, column: int) -> Content:
    parts: list[Content | tuple[str, str]] = [(fit(title, name_width), "$muted bold")]
    for place, record in enumerate(comparison.records):
        name = f"{LETTERS[place]} {steady(one_line(record.name, 40))} "
        parts.append((f"  {fit(name, column, right=True)}", f"{curve_style(place)} bold"))
    return Content.assemble(*parts)


def _fact_line(fact: Fact, name_width: int, column: int) -> Content:
    parts: list[Content | tuple[str, str]] = [(fit(fact.name, name_width), "$muted")]
    for place, words in enumerate(fact.words):
        is_best = place in fact.best
        # The star keeps its column, so that digits stay below each other.
        text = steady(one_line(words, 100)) + ("*" if is_best else " ")
        parts.append((f"  {fit(text, column, right=True)}", "bold" if is_best else ""))
    return Content.assemble(*parts)


def answer_lines(comparison: RunComparison, width: int) -> Content:
    """The last answers to each question, side by side if there is room, otherwise stacked."""
    if not comparison.answers:
        return Content.styled("None of these runs has sample answers.", "$muted")
    lines: list[Content] = []
    for answers in comparison.answers:
        lines += [Content("")] if lines else []
        lines += Content.styled(one_line(answers.prompt.strip(), 600), "bold").wrap(width)
        if answers.expected is not None:
            lines += Content.assemble(("wanted  ", "$muted"), one_line(answers.expected.strip(), 600)).wrap(width)
        count = len(answers.texts)
        if width // count >= _BESIDE:
            lines += _beside(answers, width)
        else:
            lines += [line for place in range(count) for line in _answer(answers, place, width)]
    return Content("\n").join(line.rstrip() for line in lines)


def _answer(answers: ComparedAnswers, place: int, width: int) -> list[Content]:
    """An answer below its letter, step and grade."""
    text = answers.texts[place]
    if text is None:
        return [Content.assemble((LETTERS[place], f"{curve_style(place)} bold"), ("  not asked", "$muted"))]
    mark = {True: "✓ right", False: "✗ wrong", None: ""}[answers.right[place]]
    head = Content.assemble(
        (LETTERS[place], f"{curve_style(place)} bold"), (f"  step {answers.steps[place]}  ", "$muted"), mark
    )
    return [head, *Content(steady(sanitize(text.strip()), whole=True)).wrap(max(width, 1))]


def _beside(answers: ComparedAnswers, width: int) -> list[Content]:
    count = len(answers.texts)
    column = width // count - 2
    return side_by_side([_answer(answers, place, column) for place in range(count)], column, Content("  "))


_X_AXES = {"step": STEPS, "tokens": TOKENS, "time": TIME}
_AXIS_WORDS = {"step": "steps", "tokens": "tokens", "time": "time spent in steps"}
_PARTS = ("figures", "answers")


class CompareScreen(Overlay[None]):
    """Screen of runs side by side.

    Args:
        runs: Two or more runs.
    """

    DEFAULT_CSS = style_of("CompareScreen")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("compare")]
    SCOPE = "compare"

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__()
        self._runs = tuple(runs)
        self._comparison: RunComparison | None = None
        self._error: UserError | None = None
        self._answers: RunAnswers | None = None
        self._glimpse: Sequence[tuple[str, Series]] = ()
        self._metric, self._part = "loss", 0
        self._axis: Axis = "step"
        self._curves: dict[tuple[str, Axis], list[Series]] = {}

    def compose(self) -> ComposeResult:
        """The verdict, the curves, and the scrolling tables."""
        with RecordBox(f"{len(self._runs)} runs compared"):
            yield TextBlock(Content("Reading the runs …"), id="verdict")
            yield TextBlock(id="head")
            yield LineChart(shell_of(self).glyphs)
            with VerticalScroll(can_focus=False):
                yield TextBlock(id="tables")

    def on_mount(self) -> None:
        """Read the runs."""
        self.query_one(LineChart).display = self.query_one(VerticalScroll).display = False
        self.watch(self.query_one(VerticalScroll), "show_vertical_scrollbar", self._show_hints)
        self._read()

    def on_resize(self) -> None:
        """Lay out the tables for their width, which is known after the layout."""
        self.call_after_refresh(self._show)

    @work(thread=True, group="compare")
    def _read(self) -> None:
        records: dict[str, RunRecord] = {}
        glimpses: list[tuple[str, Series]] = []
        if any(map(is_long, self._runs)):
            for run in self._runs:
                glimpse = read_glimpse(run)
                if glimpse is None:
                    records[run.id] = read_record(run)
                series = glimpse.loss if glimpse is not None else records[run.id].curve("loss")
                glimpses.append((one_line(run.id, 64), series))
            self.post_call(self._glimpsed, glimpses)
        try:
            comparison = compare_runs([records.get(run.id) or read_record(run) for run in self._runs])
            self.post_call(self._compared, comparison)
            self.post_call(self._answered, answers_of_runs(self._runs))
        except UserError as error:
            self.post_call(self._compared, None, error)

    def _glimpsed(self, curves: Sequence[tuple[str, Series]]) -> None:
        self._glimpse = curves
        self._show()

    def _compared(self, comparison: RunComparison | None, error: UserError | None = None) -> None:
        self._comparison, self._error = comparison, error
        # Do not start on an empty chart.
        if comparison is not None and not any(len(record.history.loss) for record in comparison.records):
            self._metric = "eval_loss"
        self._show()

    def _answered(self, answers: RunAnswers) -> None:
        self._answers = answers
        self._show()

    def _show(self) -> None:
        if not self.query("#tables"):  # neither before its parts are there nor after
            return
        self._show_verdict()
        self._show_chart()
        comparison = self._comparison
        tables = self.query_one("#tables", TextBlock)
        self.query_one(VerticalScroll).display = comparison is not None and not self.has_class("-zoomed")
        if comparison is not None and not self.has_class("-zoomed"):
            # Leave room for the scrollbar.
            width = max(self.query_one(RecordBox).content_size.width - 2, 20)
            tables.show((fact_tables if self._part == 0 else answer_lines)(comparison, width))
        self._show_hints()

    def _show_verdict(self) -> None:
        verdict = self.query_one("#verdict", TextBlock)
        if self._error is not None:
            verdict.show(Content(f"{one_line(self._error.message, 400)} {one_line(self._error.hint, 400)}"))
        elif self._comparison is not None:
            told = [Content.styled(one_line(self._comparison.verdict, 600), "bold")]
            flips = self._answers.flips if self._answers is not None else ()
            told += [Content(one_line(flips_line(each), 400)) for each in flips if each.compared]
            verdict.show(Content("\n").join(told))
        elif self._glimpse:
            verdict.show(Content("Some of the steps; reading all of them takes a while …"))

    def _show_chart(self) -> None:
        curves = self._shown_curves()
        chart, head = self.query_one(LineChart), self.query_one("#head", TextBlock)
        chart.display = bool(curves)
        if not curves:
            return
        metric = METRICS[self._metric]
        head.show(Content.styled(f"{metric.label} over {_AXIS_WORDS[self._axis]}", "$muted"))
        last = max((series.last_step or 0 for _, series in curves), default=0)
        chart.show(
            ChartData(
                curves=[
                    Curve(LETTERS[place], name, series, place + 1, is_smoothed=not metric.is_sparse)
                    for place, (name, series) in enumerate(curves)
                ],
                total_steps=last,
                is_over=True,
                x_axis=_X_AXES[self._axis],
            )
        )

    def _shown_curves(self) -> Sequence[tuple[str, Series]]:
        """Name and current curve of each run."""
        comparison = self._comparison
        if comparison is None:
            return self._glimpse
        key = (self._metric, self._axis)
        if key not in self._curves:
            self._curves[key] = [record.curve(*key) for record in comparison.records]
        return [
            (steady(record.name), series) for record, series in zip(comparison.records, self._curves[key], strict=True)
        ]

    def _show_hints(self) -> None:
        keys, box = shell_of(self).keys, self.query_one(RecordBox)
        if self._comparison is None:
            names = [("back", "close")]
        else:
            names = [("metric", "curve"), ("axis", "axis"), ("part", _PARTS[1 - self._part])]
            names += [("flips", "flipped")] if self._answers is not None and self._answers.flips else []
            names += [("down", "scroll")] if self.query_one(VerticalScroll).show_vertical_scrollbar else []
            names += [("zoom", "zoom"), ("save", "Markdown"), ("save_csv", "CSV"), ("back", "close")]
        box.show_hints([(keys[f"compare.{name}"].display, text) for name, text in names])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Allow only leaving until the runs have been read."""
        del parameters
        if action == "flips":
            return self._answers is not None
        mine = ("metric", "axis", "part", "zoom", "scroll", "save", "save_csv", "log_axis")
        return self._comparison is not None if action in mine else True

    def action_metric(self, by: int) -> None:
        """Show the next curve available for any run."""
        comparison, names = self._comparison, list(METRICS)
        if comparison is None:
            return
        place = names.index(self._metric)
        for offset in range(1, len(names) + 1):
            name = names[(place + by * offset) % len(names)]
            if any(len(METRICS[name].read(record.history)) for record in comparison.records):
                self._metric = name
                break
        self._show()

    def action_axis(self) -> None:
        """Switch to the next x axis."""
        self._axis = AXES[(AXES.index(self._axis) + 1) % len(AXES)]
        self._show()

    def action_log_axis(self) -> None:
        """Toggle the logarithmic axis."""
        chart = self.query_one(LineChart)
        chart.log_axis = not chart.log_axis

    def action_part(self) -> None:
        """Show the figures or the answers."""
        self._part = 1 - self._part
        self.remove_class("-zoomed")
        self._show()
        self.query_one(VerticalScroll).scroll_home(animate=False)

    def action_flips(self) -> None:
        """Show the held-out rows that flipped from the older runs to the newest, or why there are none to show."""
        answers = self._answers
        if answers is None:
            return
        if answers.record is None or answers.table is None:
            self.notify(" ".join(answers.notes), markup=False)
        else:
            self.app.push_screen(EvaluationScreen(answers.record, answers.table, shown="flipped", notes=answers.notes))

    def action_zoom(self) -> None:
        """Show the curves alone, or with the tables."""
        self.toggle_class("-zoomed")
        self._show()

    def action_scroll(self, way: Way) -> None:
        """Scroll in the tables."""
        scroll(self.query_one(VerticalScroll), way)

    def action_save(self) -> None:
        """Save a Markdown report."""
        answers = self._answers

        def write(comparison: RunComparison) -> str:
            flipped = "" if answers is None else f"\n{answers_to_markdown(answers)}"
            return to_markdown(comparison) + flipped

        self._save({"compare": write}, ".md")

    def action_save_csv(self) -> None:
        """Save figures and curves, a CSV file each."""
        self._save({"compare": to_csv, "compare-curves": to_curves_csv}, ".csv")

    @work(thread=True, group="save")
    def _save(self, writers: Mapping[str, Callable[[RunComparison], str]], suffix: str) -> None:
        if (comparison := self._comparison) is not None:
            texts = {kind: write(comparison) for kind, write in writers.items()}
            self.notify(save_files(texts, suffix), markup=False)

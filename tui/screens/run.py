"""Screen of everything about a run, in parts to page through."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.cells import cell_len, set_cell_size
from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from core.config.compare import differences
from core.config.explain import shown
from core.config.schema import find_option, options
from core.runs.catalog.answers import questions_of
from core.runs.catalog.compare import RunRecord, read_record
from core.runs.catalog.trained import KeptCheckpoint, kept_checkpoints
from core.runs.record.history import RunHistory, read_glimpse
from core.runs.record.state import Rank, rank_words, read_ranks, sign_words, silent_words
from core.runs.record.store import Run
from core.small_files import open_regular
from core.text import one_line, sanitize, steady
from core.units import (
    format_bytes,
    format_count,
    format_duration,
    format_fixed,
    format_moment,
    format_number,
    format_rate,
)
from tui.keys import bindings
from tui.screens.box import RecordBox, Way, scroll
from tui.screens.overlay import Overlay
from tui.shell import shell_of
from tui.state import STATE_GLYPHS
from tui.widgets.answers import LAYOUT_WORDS, AnswersView
from tui.widgets.charts.chart_data import ChartData
from tui.widgets.charts.line_chart import LineChart, chart_marks
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

#: Maximum number of lines of the events and of the worker's log; the newest are shown.
MOST_LINES = 1000
#: Maximum number of columns of such a line, which is wrapped.
LONGEST_LINE = 2000
#: Forms of the time of an evaluation, the longest first.
_TIMES = ("%Y-%m-%d %H:%M", "%m-%d %H:%M", "%H:%M")
_LOOKS = {"warning": "$near", "error": "$limit"}
_SIGNS = {"warning": "! ", "error": "✗ "}

#: Titles of a table; True aligns the column to the right.
_Titles = Sequence[tuple[str, bool]]


def summary(record: RunRecord, width: int) -> Content:
    """Facts and results of the run."""
    row, figures, history = record.row, record.figures, record.history
    state = record.run.state()
    tags = " ".join(f"#{tag}" for tag in row.labels.tags)
    head = f"{STATE_GLYPHS.get(state.state, '?')} {state.state}{', refused' if state.refused else ''}"
    best = f"{format_number(figures.best_loss)} at step {figures.best_step}" if figures.best_step is not None else ""
    facts = [
        ("name", steady(row.labels.name)),
        ("state", f"{head}, step {row.step} of {row.total_steps}" if row.total_steps else head),
        ("reason", history.end_reason(state)),
        ("refused", state.refused),
        ("started", format_moment(row.started, "%Y-%m-%d %H:%M") if row.started else ""),
        ("model", row.model),
        ("further from", row.parent),
        ("data", ", ".join(row.data)),
        ("rows", _rows(record)),
        ("training loss", format_number(row.loss) if row.loss is not None else ""),
        ("best eval loss", best),
        ("exact match", format_fixed(figures.exact_match, 2) if figures.exact_match is not None else ""),
        ("tokens", format_count(figures.tokens) if figures.tokens else ""),
        ("speed", format_rate(figures.tokens_per_second) if figures.tokens_per_second is not None else ""),
        ("time of work", format_duration(figures.working_seconds) if figures.working_seconds else ""),
        ("energy", f"{format_fixed(figures.energy_wh, 1)} Wh" if figures.energy_wh is not None else ""),
        ("size", format_bytes(figures.size)),
        ("tags", steady(tags)),
        ("note", steady(row.labels.note)),
        ("directory", str(record.run.path)),
    ]
    lines: list[Content] = []
    for name, value in facts:
        if value:
            wrapped = Content(one_line(value, 2000)).wrap(max(width - 16, 10))
            lines.append(Content.assemble((f"{name:<14}  ", "$muted"), wrapped[0]))
            lines += [Content.assemble(" " * 16, line) for line in wrapped[1:4]]
    return Content("\n").join(lines)


def _rows(record: RunRecord) -> str:
    data = record.history.data
    if data is None:
        return ""
    held_out = f", {format_count(data.held_out_rows)} held out" if data.held_out_rows else ""
    return f"{format_count(data.used)} of {format_count(data.rows)} used{held_out}"


def configuration(values: Mapping[str, Any], settings: Mapping[str, Any], width: int) -> Content:
    """Options changed during the run, options that differ from the defaults, and all values.

    Args:
        values: The configuration, ``section.key`` to value.
        settings: Options that were changed during the run, likewise.
        width: Columns.
    """
    if not values:
        return Content.styled("Its configuration, run.toml, cannot be read.", "$muted")
    changed = differences(values, {})
    lines = []
    if settings:
        lines.append(Content.styled("changed while it ran", "bold"))
        for name, value in settings.items():
            lines.append(_option_line(name, value, f"at the start {one_line(_value(_begun(values, name)), 40)}", width))
        lines.append(Content(""))
    lines.append(Content.styled("what differs from the defaults", "bold"))
    for name, default in changed.items():
        was = f"default {one_line(_value(default), 40)}" if default is not None else ""
        lines.append(_option_line(name, values.get(name), was, width))
    section = ""
    for option in options():
        if option.section != section:
            section = option.section
            lines += [Content(""), Content.styled(f"[{section}]", "$primary bold")]
        value = values.get(option.name)
        said = _value(option.default if value is None else value)
        sign = "• " if option.name in changed else "  "
        text = Content(one_line(said, max(width - 32, 20)))
        lines.append(Content.assemble((f"{sign}{option.key:<28}  ", "$muted"), text))
    unknown = [name for name in values if find_option(name) is None]
    if unknown:
        lines += [Content(""), Content.styled("of another version", "bold")]
        lines += [Content(one_line(f"  {name} = {_value(values[name])}", max(width, 20))) for name in unknown]
    return Content("\n").join(lines)


def _option_line(name: str, value: Any, was: str, width: int) -> Content:
    text = Content(one_line(_value(value), max(width - 32, 20)))
    line = Content.assemble((f"• {one_line(name, 28):<28}  ", "$muted"), text, (f"  {was}" if was else "", "$muted"))
    return line.truncate(max(width, 20), ellipsis=True)


def _begun(values: Mapping[str, Any], name: str) -> Any:
    """The value of an option at the start of the run."""
    option = find_option(name)
    return values.get(name, option.default if option is not None else None)


def _value(value: Any) -> str:
    return "–" if value is None else shown(value)


def evaluations(record: RunRecord, width: int) -> Content:
    """All evaluations, with the best marked."""
    found = record.history.evals
    if not found:
        return Content.styled("It was not evaluated.", "$muted")
    titles = [("step", True), ("eval loss", True), ("perplexity", True), ("exact", True), ("JSON", True)]
    titles += [("probe", True), ("took", True), ("at", False), ("", False)]
    best = record.figures.best_step

    def rows(form: str) -> Sequence[Sequence[str]]:
        return [
            [
                str(event.step),
                format_number(event.loss),
                format_number(event.perplexity),
                format_fixed(event.exact_match, 2),
                format_fixed(event.valid_json, 2),
                format_number(event.probe_loss),
                format_duration(event.seconds),
                _moment(event.t, form),
                "best" if event.step == best else "",
            ]
            for event in reversed(found)
        ]

    # The mark of the best one matters more than the date.
    return next(
        (table for form in _TIMES if _widest(table := _table(titles, rows(form))) <= width),
        _table(titles, rows(_TIMES[-1]), width),
    )


def checkpoints(found: Sequence[KeptCheckpoint], width: int) -> Content:
    """Existing checkpoints: step, size, loss, and the reason for keeping them."""
    if not found:
        return Content.styled("It has no checkpoint.", "$muted")
    titles = [("step", True), ("size", True), ("eval loss", True), ("written", False), ("kept as", False)]
    rows = [
        [
            str(item.step),
            format_bytes(item.bytes),
            format_number(item.eval_loss),
            _moment(item.time),
            ", ".join(item.reasons) or "one of the last",
        ]
        for item in found
    ]
    total = sum(item.bytes for item in found)
    foot = Content.styled(f"{len(found)} checkpoint{'s' if len(found) > 1 else ''}, {format_bytes(total)}", "$muted")
    return Content("\n").join([_table(titles, rows, width), Content(""), foot])


def processes(record: RunRecord, found: Sequence[Rank], width: int, now: float) -> Content:
    """Processes: machine, device and process id, and their last sign of life while the run is live.

    Args:
        record: The run.
        found: Its processes as last recorded.
        width: Columns.
        now: Unix seconds.
    """
    found = found or record.history.ranks
    if len(found) < 2:
        return Content.styled("It has one process.", "$muted")
    is_over = record.run.state().is_over
    titles = [("process", True), ("machine", False), ("device", False), ("pid", True), ("last sign of life", False)]
    rows = [
        [
            str(rank.rank),
            rank.host or "–",
            rank.device or "–",
            "–" if rank.pid is None else str(rank.pid),
            "" if is_over else sign_words(rank, now),
            "" if is_over or not rank.is_waiting else "waiting",
        ]
        for rank in found
    ]
    lines = [_table([*titles, ("", False)], rows, width), Content(""), Content.styled(rank_words(found), "$muted")]
    if not is_over and (silent := silent_words(found, now)):
        lines.append(Content.styled(f"! {silent}", "$near"))
    return Content("\n").join(lines)


def events(record: RunRecord, width: int) -> Content:
    """Events by day, the newest first."""
    log = list(record.history.log)
    if not log:
        return Content.styled("Its record is empty.", "$muted")
    lines: list[Content] = []
    day = ""
    for line in reversed(log[-MOST_LINES:]):
        today = format_moment(line.time, "%Y-%m-%d")
        if today != day:
            day = today
            lines.append(Content.styled(day, "bold"))
        sign, look = _SIGNS.get(line.level, "  "), _LOOKS.get(line.level, "")
        clock = f"{line.clock} "
        text = Content.styled(sign + steady(one_line(line.text, LONGEST_LINE)), look)
        for piece in _wrapped(text, width - len(clock)):
            lines.append(Content.assemble((clock, "$muted"), piece))
            clock = " " * len(clock)
    older = record.history.log_count - min(len(log), MOST_LINES)
    if older > 0:
        lines.append(Content.styled(f"and {format_count(older)} older lines", "$muted"))
    return Content("\n").join(lines)


def worker_log(text: str, width: int) -> Content:
    """The end of the worker's output."""
    lines = [line for line in sanitize(text).split("\n") if line.strip()][-MOST_LINES:]
    if not lines:
        return Content.styled("The worker and its libraries have written nothing.", "$muted")
    whole = (Content(steady(one_line(line, LONGEST_LINE))) for line in lines)
    return Content("\n").join(piece for line in whole for piece in _wrapped(line, width))


def _wrapped(line: Content, width: int) -> Sequence[Content]:
    """A line in pieces of a number of columns. Most lines fit, and wrapping takes time."""
    return [line] if line.cell_length <= width else line.wrap(max(width, 10))


def _moment(moment: float, form: str = _TIMES[0]) -> str:
    return "–" if math.isnan(moment) else format_moment(moment, form)


def _widest(text: Content) -> int:
    return max(map(cell_len, text.plain.split("\n")))


def _table(titles: _Titles, rows: Sequence[Sequence[str]], width: int | None = None) -> Content:
    """A table with columns as wide as their content, its lines cut to the width; empty columns are left out."""
    kept = [place for place in range(len(titles)) if any(row[place] not in ("", "–") for row in rows)]
    sizes = {place: max(cell_len(titles[place][0]), *(cell_len(row[place]) for row in rows)) for place in kept}

    def line(cells: Sequence[str]) -> str:
        shown = []
        for place in kept:
            gap = " " * (sizes[place] - cell_len(cells[place]))
            shown.append(gap + cells[place] if titles[place][1] else cells[place] + gap)
        text = "  ".join(shown).rstrip()
        return text if width is None or cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)) + "…"

    head = Content.styled(line([title for title, _ in titles]), "$muted")
    return Content("\n").join([head, *(Content(line(row)) for row in rows)])


#: The part with its own widget.
_SAMPLES = "Samples"
#: Bytes read from the end of the worker's log.
_LOG_BYTES = 128 << 10
#: Seconds between two reads of the processes' signs of life.
SIGN_SECONDS = 2.0


@dataclass
class RunRead:
    """The run as it has been read."""

    record: RunRecord
    checkpoints: list[KeptCheckpoint]
    log: str
    ranks: tuple[Rank, ...]


class RunScreen(Overlay[None]):
    """Screen of everything about a run.

    Args:
        run: The run.
    """

    DEFAULT_CSS = style_of("RunScreen")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("run")]
    SCOPE = "run"

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._read_run: RunRead | None = None
        self._glimpse: RunHistory | None = None
        self._part = 0
        self._parts: tuple[tuple[str, Callable[[RunRead, int], Content]], ...] = (
            ("Curve", lambda read, width: summary(read.record, width)),
            (
                "Configuration",
                lambda run, width: configuration(run.record.values, run.record.history.settings, width),
            ),
            ("Evaluations", lambda read, width: evaluations(read.record, width)),
            ("Checkpoints", lambda read, width: checkpoints(read.checkpoints, width)),
            (_SAMPLES, lambda _read, _width: Content("")),
            ("Events", lambda read, width: events(read.record, width)),
            ("Log", lambda read, width: worker_log(read.log, width)),
        )

    def compose(self) -> ComposeResult:
        """The names of the parts, and the current part."""
        with RecordBox(one_line(self._run.id, 80)):
            yield TextBlock(id="parts")
            yield LineChart(shell_of(self).glyphs)
            yield AnswersView()
            with VerticalScroll(can_focus=False, id="lines"):
                yield TextBlock(Content("Reading the run …"), id="text")

    def on_mount(self) -> None:
        """Read the run."""
        self.query_one(LineChart).display = self.query_one(AnswersView).display = False
        self._show_hints()
        self._read()

    @property
    def _shows_samples(self) -> bool:
        return self._read_run is not None and self._parts[self._part][0] == _SAMPLES

    def _show_hints(self) -> None:
        keys, walk = shell_of(self).keys, self.query_one(AnswersView).walk
        hints = [("next", "next part")]
        if self._shows_samples and walk.questions:
            hints += [("question", "question")] if len(walk.questions) > 1 else []
            hints += [("earlier_answers", "previous step"), ("beside", LAYOUT_WORDS[walk.next_layout])]
        else:
            hints += [("down", "scroll"), ("log_axis", "log axis")]
        hints.append(("back", "close"))
        self.query_one(RecordBox).show_hints([(keys[f"run.{name}"].display, text) for name, text in hints])

    def on_resize(self) -> None:
        """Lay out the text for its width, which is known after the layout."""
        self.call_after_refresh(self._show)

    @work(thread=True, group="run")
    def _read(self) -> None:
        if (glimpse := read_glimpse(self._run)) is not None:
            self.post_call(self._glimpsed, glimpse)
        record = read_record(self._run)
        kept, log = kept_checkpoints(self._run, record.history), _end_of_log(self._run)
        self.post_call(self._has_read, RunRead(record, kept, log, read_ranks(self._run.path)))

    def _glimpsed(self, glimpse: RunHistory) -> None:
        self._glimpse = glimpse
        self._show()

    def _has_read(self, read: RunRead) -> None:
        self._read_run = read
        if len(read.ranks) > 1 or len(read.record.history.ranks) > 1:
            self._parts = (*self._parts[:1], ("Processes", self._processes), *self._parts[1:])
            if not self._run.state().is_over:
                self.set_interval(SIGN_SECONDS * shell_of(self).pace, self._look_at_signs)
        self.query_one(AnswersView).show(questions_of(read.record.history.samples), "It has no sample answers.")
        self._show()

    def _processes(self, read: RunRead, width: int) -> Content:
        return processes(read.record, read.ranks, width, shell_of(self).clock())

    def _look_at_signs(self) -> None:
        """Update the signs of life while the part with the processes is open."""
        if self._read_run is not None and self._parts[self._part][0] == "Processes":
            self._read_run.ranks = read_ranks(self._run.path)
            self._show()

    def _show(self) -> None:
        if not self.query("#text"):  # neither before its parts are there nor after
            return
        self._show_parts()
        self._show_chart()
        self._show_hints()
        read, text = self._read_run, self.query_one("#text", TextBlock)
        self.query_one(AnswersView).display = self._shows_samples
        self.query_one("#lines").display = not self._shows_samples
        if read is not None:
            # Leave room for the scrollbar.
            width = max(self.query_one(RecordBox).content_size.width - 2, 20)
            text.show(self._parts[self._part][1](read, width))
        elif self._glimpse is not None:
            text.show(Content.styled("Some of its steps; reading all of them takes a while …", "$muted"))

    def _show_parts(self) -> None:
        present = self._parts[self._part][0]
        # In brackets too, for terminals without color.
        names = [
            (f"[{name}]", "$primary bold") if name == present else (f" {name} ", "$muted") for name, _ in self._parts
        ]
        line = Content(" ").join(Content.styled(*name) for name in names)
        if line.cell_length > (self.query_one("#parts").size.width or 80):
            where = f"  {self._part + 1} of {len(self._parts)}"
            line = Content.assemble((f"[{present}]", "$primary bold"), (where, "$muted"))
        self.query_one("#parts", TextBlock).show(line)

    def _show_chart(self) -> None:
        chart, data = self.query_one(LineChart), self._chart_data()
        chart.display = data is not None and len(data.loss) > 0
        if data is not None and chart.display:
            chart.show(data)

    def _chart_data(self) -> ChartData | None:
        """The curve, if its part is open and there is one."""
        read, glimpse = self._read_run, self._glimpse
        if self._part:
            return None
        if read is None:
            return ChartData(glimpse.loss, total_steps=glimpse.step, is_over=True) if glimpse else None
        history = read.record.history
        total = read.record.row.total_steps
        return ChartData(
            history.loss, history.eval_loss, chart_marks(history), total, is_over=True, probe=history.probe_loss
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Allow only leaving until the run has been read."""
        del parameters
        if action in ("turn_question", "walk_answers", "turn_layout"):
            return self._shows_samples
        return self._read_run is not None if action in ("turn", "scroll", "log_axis") else True

    def action_turn(self, by: int) -> None:
        """Show the next or previous part."""
        self._part = (self._part + by) % len(self._parts)
        self._show()
        self._box.scroll_home(animate=False)

    @property
    def _box(self) -> VerticalScroll:
        """The scrolling box of the current part."""
        return self.query_one(AnswersView) if self._shows_samples else self.query_one("#lines", VerticalScroll)

    def action_turn_question(self, by: int) -> None:
        """Show the samples of the next or previous question."""
        self.query_one(AnswersView).turn(by)

    def action_walk_answers(self, by: int) -> None:
        """Show the samples of a later or earlier evaluation."""
        self.query_one(AnswersView).walk_by(by)

    def action_turn_layout(self) -> None:
        """Cycle the samples' layout: beside the previous, the first or the wanted answers, or all."""
        self.query_one(AnswersView).turn_layout()
        self._show_hints()

    def action_log_axis(self) -> None:
        """Toggle the logarithmic axis."""
        chart = self.query_one(LineChart)
        chart.log_axis = not chart.log_axis

    def action_scroll(self, way: Way) -> None:
        """Scroll the current part."""
        scroll(self._box, way)


def _end_of_log(run: Run) -> str:
    """The end of the worker's output; empty if it cannot be read."""
    try:
        with open_regular(run.log_path) as file:
            size = file.seek(0, 2)
            file.seek(max(size - _LOG_BYTES, 0))
            data = file.read(_LOG_BYTES) or b""
    except OSError:
        return ""
    text = data.decode("utf-8", errors="replace")
    # The first line may be cut.
    return text.partition("\n")[2] if size > _LOG_BYTES else text

"""The screen of everything about a run, in parts that are turned through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message

from core.runs.catalog.answers import questions_of
from core.runs.catalog.compare import RunRecord, read_record
from core.runs.catalog.trained import KeptCheckpoint, kept_checkpoints
from core.runs.record.history import RunHistory, read_glimpse
from core.runs.record.state import Rank, read_ranks
from core.runs.record.store import Run
from core.small_files import open_regular
from core.text import one_line
from tui.keys import bindings
from tui.screens.overlay import Overlay
from tui.screens.run import parts
from tui.screens.scrolling import Way, scroll
from tui.shell import shell_of
from tui.widgets.answer_walk import LAYOUT_WORDS
from tui.widgets.charts.chart_data import ChartData
from tui.widgets.charts.line_chart import LineChart
from tui.widgets.charts.run_chart import chart_marks
from tui.widgets.lists.answers_view import AnswersView
from tui.widgets.text_block import TextBlock

#: The part that has a widget of its own.
_SAMPLES = "Samples"
#: Bytes of the end of the worker's log.
_LOG_BYTES = 128 << 10
#: Seconds between two looks at the signs of life of a run's processes.
SIGN_SECONDS = 2.0


@dataclass
class RunRead(Message):
    """The run has been read."""

    record: RunRecord
    checkpoints: list[KeptCheckpoint] = field(default_factory=list)
    log: str = ""
    ranks: tuple[Rank, ...] = ()


@dataclass
class RunGlimpsed(Message):
    """Some steps of a long run, long before it is read."""

    glimpse: RunHistory


def _configuration(read: RunRead, width: int) -> Content:
    return parts.configuration(read.record.values, read.record.history.settings, width)


class RunScreen(Overlay[None]):
    """Everything about a run.

    Args:
        run: The run.
    """

    DEFAULT_CSS = """
    RunScreen { align: center middle; background: $background 60%; }
    RunScreen > Vertical {
        width: 100%; height: 1fr; margin: 1 0; padding: 0 1;
        border: round $border-focus; border-title-style: bold; border-subtitle-color: $muted; background: $surface;
    }
    RunScreen #parts { margin-bottom: 1; }
    RunScreen LineChart { height: 1fr; min-height: 6; }
    RunScreen VerticalScroll { height: 1fr; scrollbar-size-vertical: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("run")]
    SCOPE = "run"

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._read_run: RunRead | None = None
        self._glimpse: RunHistory | None = None
        self._part = 0
        self._parts: tuple[tuple[str, Callable[[RunRead, int], Content]], ...] = (
            ("Curve", lambda read, width: parts.summary(read.record, width)),
            ("Configuration", _configuration),
            ("Evaluations", lambda read, width: parts.evaluations(read.record, width)),
            ("Checkpoints", lambda read, width: parts.checkpoints(read.checkpoints, width)),
            (_SAMPLES, lambda _read, _width: Content("")),
            ("Events", lambda read, width: parts.events(read.record, width)),
            ("Log", lambda read, width: parts.worker_log(read.log, width)),
        )

    def compose(self) -> ComposeResult:
        """The names of the parts, and the present one."""
        with Vertical() as box:
            box.border_title = Content(one_line(self._run.id, 80))
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
            hints += [("earlier_answers", "step before"), ("beside", LAYOUT_WORDS[walk.next_layout])]
        else:
            hints += [("down", "scroll"), ("log_axis", "log axis")]
        hints.append(("back", "close"))
        self.query_one(Vertical).border_subtitle = Content(
            "  ".join(f"{keys[f'run.{name}'].display} {text}" for name, text in hints)
        )

    def on_resize(self) -> None:
        """Lay the text out for its width, which is known once the screen has been laid out."""
        self.call_after_refresh(self._show)

    @work(thread=True, group="run")
    def _read(self) -> None:
        if (glimpse := read_glimpse(self._run)) is not None:
            self.post_from_thread(RunGlimpsed(glimpse))
        record = read_record(self._run)
        kept, log = kept_checkpoints(self._run, record.history), _end_of_log(self._run)
        self.post_from_thread(RunRead(record, kept, log, read_ranks(self._run.path)))

    @on(RunGlimpsed)
    def _glimpsed(self, message: RunGlimpsed) -> None:
        self._glimpse = message.glimpse
        self._show()

    @on(RunRead)
    def _has_read(self, message: RunRead) -> None:
        self._read_run = message
        if len(message.ranks) > 1 or len(message.record.history.ranks) > 1:
            self._parts = (*self._parts[:1], ("Processes", self._processes), *self._parts[1:])
            if not self._run.state().is_over:
                self.set_interval(SIGN_SECONDS * shell_of(self).pace, self._look_at_signs)
        self.query_one(AnswersView).show(questions_of(message.record.history.samples), "It has no sample answers.")
        self._show()

    def _processes(self, read: RunRead, width: int) -> Content:
        return parts.processes(read.record, read.ranks, width, shell_of(self).clock())

    def _look_at_signs(self) -> None:
        """Show the newest signs of life of the processes, where they are looked at."""
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
            # Less the scrollbar, which may come with the lines.
            width = max(self.query_one(Vertical).content_size.width - 2, 20)
            text.show(self._parts[self._part][1](read, width))
        elif self._glimpse is not None:
            text.show(Content.styled("Some of its steps; reading all of them takes a while …", "$muted"))

    def _show_parts(self) -> None:
        present = self._parts[self._part][0]
        # In brackets too: colors are not all that a terminal may lack.
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
        """The curve, where it is the present part and there is one."""
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
        """Before the run has been read there is only the way out."""
        del parameters
        if action in ("turn_question", "walk_answers", "turn_layout"):
            return self._shows_samples
        return self._read_run is not None if action in ("turn", "scroll", "log_axis") else True

    def action_turn(self, by: int) -> None:
        """Show the next part, or the one before."""
        self._part = (self._part + by) % len(self._parts)
        self._show()
        self._box.scroll_home(animate=False)

    @property
    def _box(self) -> VerticalScroll:
        """What scrolls of the present part."""
        return self.query_one(AnswersView) if self._shows_samples else self.query_one("#lines", VerticalScroll)

    def action_turn_question(self, by: int) -> None:
        """Show the samples of the next question, or of the one before."""
        self.query_one(AnswersView).turn(by)

    def action_walk_answers(self, by: int) -> None:
        """Show the samples of a later evaluation, or of an earlier one."""
        self.query_one(AnswersView).walk_by(by)

    def action_turn_layout(self) -> None:
        """Put the samples beside those before, the first ones or the wanted ones; or show all of them."""
        self.query_one(AnswersView).turn_layout()
        self._show_hints()

    def action_log_axis(self) -> None:
        """Draw the loss on a logarithmic axis, or back."""
        chart = self.query_one(LineChart)
        chart.log_axis = not chart.log_axis

    def action_scroll(self, way: Way) -> None:
        """Scroll in the present part."""
        scroll(self._box, way)

    def action_back(self) -> None:
        """Leave."""
        self.dismiss(None)


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
    # The first line may be the rest of one.
    return text.partition("\n")[2] if size > _LOG_BYTES else text

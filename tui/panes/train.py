"""The Train pane: the run that is shown, from its first phase to its end, with the keys that control it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content

from core.errors import UserError
from core.text import one_line
from tui.keys import bindings
from tui.messages import (
    ActionFailed,
    ContinueRequested,
    ControlRequested,
    EditRunRequested,
    SampleRequested,
    SettingsRequested,
)
from tui.panes.base import Pane
from tui.widgets import run_lines
from tui.widgets.charts.device_panel import DevicePanel
from tui.widgets.charts.line_chart import ChartData, LineChart
from tui.widgets.empty_state import EmptyState
from tui.widgets.lists.log_view import LogView
from tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from tui.state import RunView

#: Seconds after which devices of a live run count as not reported any more.
STALE_SECONDS = 15.0


class TrainPane(Pane, can_focus=True):
    """Numbers, loss chart, progress, devices and log of one run."""

    DEFAULT_CSS = """
    TrainPane #phases { padding: 1 0; height: 1fr; }
    TrainPane #banner { margin-bottom: 1; }
    TrainPane LogView { height: 1fr; min-height: 2; max-height: 40%; }
    TrainPane LineChart { height: 3fr; }
    TrainPane DevicePanel { margin-top: 0; }
    TrainPane.-roomy DevicePanel { margin: 1 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("train")]
    HELP = (
        "What the run is doing. Dots are the loss of each step, the line is smoothed, ◆ is the loss on held-out rows."
    )

    def __init__(self) -> None:
        super().__init__()
        self._view: RunView | None = None
        self._log_count = 0
        self._hints: list[tuple[str, str]] | None = None

    def compose(self) -> ComposeResult:
        glyphs = self.shell.glyphs
        yield EmptyState("", id="empty")
        yield TextBlock(id="banner")
        yield TextBlock(id="numbers")
        yield LineChart(glyphs)
        yield TextBlock(id="phases")
        yield TextBlock(id="progress")
        yield DevicePanel(glyphs)
        yield LogView()

    def on_mount(self) -> None:
        """Start empty, with a timer for the seconds of a phase."""
        self.show(None)
        self.query_one("#empty", EmptyState).say("Looking for runs …")
        self.set_interval(1.0, self._tick)

    def show(self, view: RunView | None) -> None:
        """Show a run, or the empty state."""
        fresh = view is not self._view
        self._view = view
        self.set_class(view is None, "-empty")
        empty = self.query_one("#empty", EmptyState)
        if view is None:
            keys = self.keys
            start = (keys["app.start"].display, "start with the configuration")
            empty.say("No run yet.", [start, (keys["train.sample"].display, "try the sample first (3 min)")])
        empty.display = view is None
        self.query_one(LogView).display = view is not None
        if view is None:
            for kind in (LineChart, DevicePanel):
                self.query_one(kind).display = False
            self.set_title("3 Train")
        else:
            if fresh:
                self._log_count = 0
                self.query_one(LogView).clear()
                self.set_title("3 Train", one_line(view.run.id, 60))
            self._update(view)
        self._subtitle()

    def _update(self, view: RunView) -> None:
        history = view.history
        charted = len(history.loss) > 0
        chart = self.query_one(LineChart)
        chart.display = charted
        if charted:
            marks = [(mark.step, mark.text) for mark in history.marks]
            chart.show(ChartData(history.loss, history.eval_loss, marks, view.state.total_steps))
        self._update_lines(view)
        log = self.query_one(LogView)
        log.append(history.log_since(self._log_count))
        self._log_count = history.log_count

    def _update_lines(self, view: RunView) -> None:
        width, now, glyphs = self.content_size.width, self.shell.clock(), self.shell.glyphs
        charted = len(view.history.loss) > 0
        self.query_one("#banner", TextBlock).show(run_lines.banner(view, self.keys))
        self.query_one("#numbers", TextBlock).show(run_lines.numbers(view, width))
        self.query_one("#phases", TextBlock).show(
            Content("") if charted else run_lines.phases(view, now, width, glyphs)
        )
        self.query_one("#progress", TextBlock).show(
            run_lines.progress(view, width, glyphs, now, answer_awaited=self.shell.state.answer_awaited)
        )
        panel = self.query_one(DevicePanel)
        panel.display = view.is_live and bool(view.history.devices)
        if panel.display:
            age = now - view.history.updated if view.history.updated is not None else 0.0
            stale = f"{age:.0f} s old" if age > STALE_SECONDS and view.state.state == "stalled" else ""
            panel.show_devices(view.history.devices, stale)

    def _tick(self) -> None:
        view = self._view
        if view is not None and view.is_live and self.is_on_screen and view.history.phase is not None:
            self._update_lines(view)

    def on_resize(self) -> None:
        """Lay out the lines for the new size."""
        self.set_class(self.size.height >= 26, "-roomy")
        self.refresh_lines()

    def refresh_lines(self) -> None:
        """Update the lines about the run, without the chart."""
        if self._view is not None:
            self._update_lines(self._view)

    def _subtitle(self) -> None:
        keys, view = self.keys, self._view
        if view is None:
            entries = []
        elif view.is_live:
            pause = "resume" if view.state.state == "paused" else "pause"
            entries = [(keys["train.pause"].display, pause)]
            entries += [(keys[f"train.{name}"].display, name) for name in ("checkpoint", "stop", "settings")]
        else:
            entries = []
            if view.state.state != "finished" and view.history.checkpoints:
                entries.append((keys["train.continue"].display, "continue"))
        if view is not None and len(view.history.loss):
            entries.append((keys["train.log_axis"].display, "log axis"))
        # Writing to the border repaints the whole pane, and so it is done only where the keys have changed.
        if entries != self._hints:
            self._hints = entries
            self.refresh_bindings()
            self.border_subtitle = Content("  ").join(
                Content.assemble((key, "$foreground bold"), f" {text}") for key, text in entries
            )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether an action makes sense for the run that is shown."""
        view = self._view
        if action in ("toggle_pause", "checkpoint", "stop"):
            return view is not None and view.is_live
        if action == "change_settings":
            return view is not None
        if action == "continue_run":
            return view is not None and not view.is_live
        if action == "sample":
            return view is None or not view.is_live
        if action in ("toggle_log_axis", "follow_log"):
            return view is not None
        return super().check_action(action, parameters)

    def action_toggle_pause(self) -> None:
        """Pause or resume the run."""
        paused = self._view is not None and self._view.state.state == "paused"
        self.post_message(ControlRequested("resume" if paused else "pause"))

    def action_checkpoint(self) -> None:
        """Save a checkpoint now."""
        self.post_message(ControlRequested("checkpoint"))

    def action_stop(self) -> None:
        """Stop the run in one way or another; the app asks first."""
        self.post_message(ControlRequested("stop"))

    def action_change_settings(self) -> None:
        """Ask for other settings of a live run; of an ended one, open the configuration."""
        view = self.shell.state.live_run
        if view is None:
            if self._view is not None:
                self.post_message(EditRunRequested(self._view.run))
            return
        from tui.screens.run_settings import RunSettings

        try:
            config = view.run.config()
        except UserError as error:
            self.post_message(ActionFailed("The settings cannot be changed", error))
            return

        def send(settings: dict[str, Any]) -> None:
            self.post_message(SettingsRequested(view.run, settings))

        # Called directly, not by a message: keys typed after the one that opens the dialog are its text, and come
        # before it.
        self.app.push_screen(RunSettings(view, config, send))

    def action_continue_run(self) -> None:
        """Continue the run from its last checkpoint."""
        self.post_message(ContinueRequested(self._view.run if self._view is not None else None))

    def action_sample(self) -> None:
        """Train on the sample data."""
        self.post_message(SampleRequested())

    def action_toggle_log_axis(self) -> None:
        """Switch the loss axis between linear and logarithmic."""
        chart = self.query_one(LineChart)
        chart.log_axis = not chart.log_axis

    def action_follow_log(self) -> None:
        """Scroll to the end of the log, and follow it."""
        self.query_one(LogView).follow()

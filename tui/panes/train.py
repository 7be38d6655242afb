"""Train pane: the shown run from its first phase to its end, with the keys that control it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.content import Content

from core.errors import UserError
from core.runs.catalog.answers import questions_of
from core.runs.record.sentences import brief_id
from core.text import one_line
from tui.datasets.here import Here
from tui.keys import Key, bindings
from tui.meters import stale_words
from tui.panes.base import Pane
from tui.shell import copy_text
from tui.widgets import run_end, run_lines
from tui.widgets.answers import LAYOUT_WORDS, AnswersView, without_answers
from tui.widgets.charts.device_panel import (
    ONE_LINE,
    Around,
    DevicePanel,
    PlannedMemory,
    all_readings,
    planned_memory,
)
from tui.widgets.charts.line_chart import LineChart, RunChart
from tui.widgets.empty_state import FirstSteps, Way, ways_to_begin
from tui.widgets.forms.ask_bar import takes_text
from tui.widgets.lists.log_view import LogView
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from core.evaluation.flips import Flips
    from core.evaluation.run_answers import RunAnswers
    from core.hardware.snapshot import Device
    from core.runs.catalog.result import RunResult
    from core.runs.record.history import RunHistory
    from core.runs.record.store import Run
    from tui.state import RunView

#: Rows from which the end of a run has blank lines between its parts.
ROOMY = 36
#: Columns from which the answers are beside the curve, and are shown by default.
BESIDE = 150
#: Rows from which the meters show every reading.
DETAILED = 26


class TrainPane(Pane, can_focus=True):
    """Numbers, loss chart, progress, devices and log of a run."""

    DEFAULT_CSS = style_of("TrainPane")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("train")]

    def __init__(self) -> None:
        super().__init__()
        self._view: RunView | None = None
        self._is_looking = True
        self._log_count = 0
        self._result: RunResult | None = None
        self._answers: RunAnswers | None = None
        self._card: Sequence[run_end.Hint] = ()
        self._end: object = None
        self._answers_wanted: bool | None = None
        self._sampled: object = None
        self._curves = RunChart()

    def compose(self) -> ComposeResult:
        glyphs = self.shell.glyphs
        yield FirstSteps(id="empty")
        yield TextBlock(id="banner", classes="-hints")
        yield TextBlock(id="numbers")
        with Horizontal(id="stage"):
            yield LineChart(glyphs)
            yield AnswersView()
        yield TextBlock(id="phases")
        yield TextBlock(id="progress")
        yield TextBlock(id="ranks")
        yield DevicePanel(glyphs)
        yield LogView()

    def on_mount(self) -> None:
        """Show the empty state, and start the timer that updates elapsed times."""
        self.show(None)
        self._is_looking = True
        self._empty.explain("Looking for runs …")
        for part in (self.query_one(LogView), self.query_one(AnswersView)):
            self.watch(part, "show_vertical_scrollbar", self._subtitle, init=False)
        self.watch(self.query_one(LogView), "scroll_y", self._log_scrolled, init=False)
        self.set_interval(self.shell.pace, self._tick)

    def show(self, view: RunView | None) -> None:
        """Show a run, or the empty state."""
        before, fresh = self._view, view is not self._view
        self._view, self._is_looking = view, False
        self.set_class(view is None, "-empty")
        if view is None:
            self.explain_empty()
        self._empty.display = view is None
        self.query_one(LogView).display = view is not None
        if view is None:
            for kind in (Horizontal, DevicePanel):
                self.query_one(kind).display = False
            self.set_title("3 Train")
        else:
            if fresh:
                self._log_count = 0
                self._result = self._answers = self._answers_wanted = None
                self.query_one(LogView).clear()
                if before is None or before.run.path != view.run.path:
                    self._chart.reset()
                    self.query_one(AnswersView).reset()
                    self._sampled = None
            self._update(view)
        self._subtitle()

    @property
    def _empty(self) -> FirstSteps:
        return self.query_one("#empty", FirstSteps)

    @property
    def more_keys(self) -> Sequence[Key]:
        """The keys of the empty state."""
        return self._empty.keys if self._view is None else ()

    def explain_empty(self) -> None:
        """Show ways to start: run the configuration if it has data, else choose data."""
        if self._view is not None or self._is_looking:
            return
        keys, here, document = self.keys, self._empty.here, self.shell.state.document
        sample = "the sample tickets, a run of a few minutes"
        ways = ways_to_begin(keys, here, self.shell.clock(), sample="train.sample", sample_text=sample)
        if document is not None and document.get("data.train"):
            # The data is chosen already, so no files are offered.
            ways = [Way(keys["app.start"], "start a run of the configuration"), *ways[2:]]
            self._empty.explain("No run yet.", ways, has_files=False)
        else:
            about = "" if here.runs else "Fine-tune a language model on your data, locally.\n\n"
            self._empty.explain(f"{about}No run yet. What should the model learn from?", ways)

    def look_around(self, here: Here) -> None:
        """Show the data files and runs to start from, while there is no run."""
        self._empty.look_around(here)
        self.explain_empty()

    async def on_key(self, event: events.Key) -> None:
        """Handle the keys of the empty state, some of which belong to other panes."""
        if self._view is not None or not self.has_focus:
            return
        if not await self._empty.take_files_key(event, self.keys):
            await self._empty.take_key(event, "train")

    @on(FirstSteps.Chosen)
    def _file_chosen(self, message: FirstSteps.Chosen) -> None:
        message.stop()
        self.shell.configuration.open_data(message.path)

    def _update(self, view: RunView) -> None:
        history = view.history
        if view.is_live or view.is_partial:
            self._result = self._answers = None
        elif self._result is None or history.end is not self._end:
            # Lazily: it imports the configuration's checks, which take as long as the first paint.
            from core.runs.catalog.result import result_of

            self._result, self._end = result_of(view.run, view.state, history), history.end
            self._read_answers(view.run)
        self._show_chart(view)
        self._set_stage()
        self._update_lines(view)
        log = self.query_one(LogView)
        log.append(history.log_since(self._log_count))
        self._log_count = history.log_count

    @work(thread=True, exclusive=True, group="flips")
    def _read_answers(self, run: Run) -> None:
        """Read the answers before and after training, which may be many."""
        from core.evaluation.run_answers import answers_of_training

        self.app.call_later(self._answered, run, answers_of_training(run))

    def _answered(self, run: Run, answers: RunAnswers) -> None:
        if self._view is not None and self._view.run == run and self._result is not None:
            self._answers = answers
            self._update_lines(self._view)
            self.refresh_bindings()

    @property
    def _flips(self) -> Flips | None:
        """The answers that flipped with the training of the ended run; None if there are no two to compare."""
        return next(iter(self._answers.flips), None) if self._answers is not None else None

    def action_show_flips(self) -> None:
        """Show the held-out rows that flipped with the training."""
        from tui.screens.evaluation import EvaluationScreen

        if (answers := self._answers) is not None and answers.record is not None and answers.table is not None:
            self.app.push_screen(EvaluationScreen(answers.record, answers.table, shown="flipped", notes=answers.notes))

    def _show_chart(self, view: RunView) -> None:
        chart = self._chart
        chart.show(self._curves.data(view))
        chart.log_axis = self._curves.is_logarithmic(self._curves.main(view.history))

    @property
    def _chart(self) -> LineChart:
        return self.query_one(LineChart)

    @property
    def _has_samples(self) -> bool:
        return self._view is not None and bool(self._view.history.samples)

    @property
    def _shows_answers(self) -> bool:
        if self._answers_wanted is None:
            return self._has_samples and self.has_class("-beside")
        # If requested, they are shown even without answers: the view explains why there are none.
        return self._view is not None and self._answers_wanted

    @property
    def _shows_chart(self) -> bool:
        return self._view is not None and self._chart.display and len(self._view.history.loss) > 0

    @property
    def _covers_curve(self) -> bool:
        """True if the answers replace the curve."""
        return self._shows_answers and not self.has_class("-beside")

    @property
    def _is_zoomed(self) -> bool:
        return self._chart.zoom.span is not None

    def _set_stage(self) -> None:
        """Show the curve, the answers, or both if they fit."""
        view = self._view
        if view is None:
            return
        charted, answers, chart = len(view.history.loss) > 0, self.query_one(AnswersView), self._chart
        answers.display = self._shows_answers
        chart.display = charted and not self._covers_curve
        self.query_one("#stage").display = chart.display or answers.display
        samples, without = view.history.samples, without_answers(view)
        version = (view.run.path, samples[-1] if samples else without, len(samples))
        if answers.display and version != self._sampled:
            self._sampled = version
            answers.show(questions_of(samples), without)
        walk = answers.walk
        place = f"answers {walk.place + 1}/{len(walk.questions)}" if answers.display and walk.questions else ""
        reading = "reading the rest of its record …" if view.is_partial else ""
        self.set_title("3 Train", one_line(view.run.id, 60), place, reading)
        self._subtitle()

    def _update_lines(self, view: RunView) -> None:
        # Hidden, it has no size; most likely it is shown alone.
        width = self.content_size.width or self.app.size.width - 4
        now, glyphs = self.shell.clock(), self.shell.glyphs
        charted, result = len(view.history.loss) > 0, self._result
        hints: list[run_end.Hint] = []
        self._card = hints
        if result is not None:
            name = brief_id(view.run.id)
            self._card = hints = run_end.end_hints(
                result, self.keys, has_answers=self._has_samples, has_flips=self._flips is not None, name=name
            )
        self.query_one("#banner", TextBlock).show(
            run_lines.banner(view, self.keys)
            if result is None
            else run_end.end_lines(
                result,
                hints,
                width,
                glyphs,
                works=self._works,
                take=self.keys["train.better"].display,
                flips=self._flips,
                roomy=self.size.height >= ROOMY,
            )
        )
        self.query_one("#numbers", TextBlock).show(
            # The end repeats the important ones.
            run_lines.numbers(view, width) if result is None or self.has_class("-roomy") else Content("")
        )
        self.query_one("#phases", TextBlock).show(
            Content("") if charted else run_lines.phases(view, now, width, glyphs)
        )
        self.query_one("#progress", TextBlock).show(
            run_lines.progress(view, width, glyphs, now, answer_awaited=self.shell.state.answer_awaited)
            if result is None
            else Content("")
        )
        self.query_one("#ranks", TextBlock).show(
            run_lines.ranks(view.ranks or view.history.ranks, width, now) if view.is_live else Content("")
        )
        panel = self.query_one(DevicePanel)
        panel.display = view.reports_devices
        if panel.display:
            stale = stale_words(view.reading_age(now))
            panel.show_devices(view.reading().devices, stale, self._around(view))

    def offers(self, identity: str) -> bool:
        """True for a key of the end card."""
        return any(shown == self.keys[identity].display for shown, _ in self._card)

    def focus_moved(self) -> None:
        """Show which keys of the border and of the end card work."""
        super().focus_moved()
        if self._card:
            self.refresh_lines()

    def _works(self, shown: str) -> bool:
        """True if a displayed key of the end card works from where the focus is."""
        focused, key = self.screen.focused, self.keys.displayed("train", shown)
        if key is None or takes_text(focused):
            return False
        above = focused.ancestors_with_self if focused is not None else ()
        scope = next((node.scope for node in above if isinstance(node, Pane)), "train")
        own = self.keys.find(scope, key.keys.split(",")[0])
        return key.scope == "app" or own is None or own.id == key.id

    def _around(self, view: RunView) -> Around:
        """The planned memory, the machine and the process, for the meters."""

        def planned(device: Device) -> PlannedMemory | None:
            return planned_memory(view.history.memory, device, view.state.pid)

        return Around(
            planned,
            view.reading().host,
            view.state.pid,
            is_detailed=self.size.height >= DETAILED,
            more=self.keys["train.details"].display,
        )

    def action_show_readings(self) -> None:
        """Show every figure of the run, and every reading of the devices and of the machine."""
        from tui.screens.box import ReportScreen

        def lines(width: int) -> Sequence[Content]:
            view, devices, around = self._view, self.shell.state.devices, Around()
            if view is not None and view.reports_devices:
                devices = view.reading().devices
                around = replace(self._around(view), age=stale_words(view.reading_age(self.shell.clock())))
            figures = run_lines.figures(view) if view is not None else []
            return all_readings(devices, width, self.shell.glyphs, around, figures)

        self.app.push_screen(ReportScreen("Readings", lines, self.shell.pace))

    def _tick(self) -> None:
        view = self._view
        if view is not None and view.is_live and self.is_on_screen and view.history.phase is not None:
            self._update_lines(view)

    def on_resize(self) -> None:
        """Lay out the lines for the new size."""
        self.set_class(self.size.height >= 26, "-roomy")
        self.set_class(self.content_size.width >= BESIDE, "-beside")
        self._set_stage()
        self.refresh_lines()

    def refresh_lines(self) -> None:
        """Update the lines about the run, without the chart."""
        if self._view is not None:
            self._update_lines(self._view)
            self._subtitle()

    def _log_scrolled(self, before: float, now: float) -> None:
        """Name the key that goes on from the top of the log."""
        if (before > 0) != (now > 0):
            self._subtitle()

    def _subtitle(self) -> None:
        keys, view = self.keys, self._view
        entries: list[tuple[str, str]] = []
        readings, width = (keys["train.details"].display, "readings"), self.content_size.width
        log = self.query_one(LogView)
        # What is hidden comes first: the other keys are behind that of the help.
        whole = [(keys["train.unfold"].display, "whole lines")] if view is not None and log.is_cut else []
        if view is not None and log.show_vertical_scrollbar and self._scrolled is log:
            whole.append((keys[f"train.page_{'up' if log.scroll_y > 0 else 'down'}"].display, "log"))
        if view is not None and not view.is_live:
            entries = [*whole, readings]
        if view is not None and view.is_live:
            pending = view.pending
            pause = "resume" if view.state.state == "paused" else "pause"
            names = [("pause", pause), ("stop", "stop"), ("checkpoint", "checkpoint")]
            # The same key withdraws a pending request.
            if "park" in pending:
                names.insert(1, ("park", "park"))
            elif view.state.parked or view.is_measuring_base:
                names = [entry for entry in names if entry[0] != "checkpoint"]
            # What has been asked for can be taken back first; the footer has the other keys too.
            asked = [(keys[f"train.{name}"].display, "take back") for name, _ in names if name in pending]
            if view.is_measuring_base:
                asked.insert(0, (keys["train.skip"].display, "skip evaluation"))
            others = [(keys[f"train.{name}"].display, word) for name, word in names if name not in pending]
            # Below, the meters have room for the hint.
            if view.reports_devices and width >= ONE_LINE:
                others.insert(2, readings)
            entries = [*asked, *whole, *others]
        if self._covers_curve:
            # The keys of the visible part come first, as not all may fit.
            entries = [*self._answer_hints(), (keys["train.curve"].display, "curve"), *entries]
        elif self._shows_answers:
            entries += self._answer_hints()
        elif self._has_samples and self._shows_chart and view is not None and view.is_live:
            entries.append((keys["train.answers"].display, "answers"))
        # Behind the keys of what has no room.
        if view is not None and view.is_live and not view.state.parked:
            entries.append((keys["train.settings"].display, "settings"))
        if view is not None and self._shows_chart:
            entries += self._chart_hints(view)
        if tuple(entries) != self._hints:
            self.refresh_bindings()
        self.show_hints(entries)

    def _answer_hints(self) -> list[tuple[str, str]]:
        """Hints for the keys of the answers that have an effect now."""
        walk = self.query_one(AnswersView).walk
        named = [("page_down", "read on")] if isinstance(self._scrolled, AnswersView) else []
        named += [("question", "question")] if len(walk.questions) > 1 else []
        if len(walk.steps) > 1:
            # One hint for both, so that it stays from step to step.
            later = self.keys["train.later_answers"].display
            named += [("earlier_answers", f"{later} step"), ("beside", LAYOUT_WORDS[walk.next_layout])]
        return [(self.keys[f"train.{name}"].display, word) for name, word in named]

    def _chart_hints(self, view: RunView) -> list[tuple[str, str]]:
        """Hints for the keys of the chart that have an effect now."""
        named = [("curve", "cursor off")] if self._chart.cursor is not None else []
        if self._curves.main(view.history).has_log_axis:
            named.append(("log_axis", "log axis"))
        named += [("metric", "curve"), ("second", "second curve"), ("zoom_in", "zoom")]
        if self._is_zoomed:
            named += [("zoom_out", "out"), ("whole", "all steps")]
        return [(self.keys[f"train.{name}"].display, word) for name, word in named]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """True if an action is available for the shown run."""
        view = self._view
        match action:
            case "toggle_pause" | "checkpoint" | "stop":
                return view is not None and view.is_live
            case "park":
                return view is not None and view.is_live and not view.state.parked
            case "skip":
                return view is not None and view.is_measuring_base
            case "continue_run":
                return view is not None and not view.is_live
            case "sample":
                # Only in the empty state, which offers it: over a run of the user, its key would be an accident.
                return view is None
            case "change_settings" | "toggle_answers" | "follow_log" | "unfold_log" | "scroll" | "scroll_page":
                return view is not None
            case "toggle_log_axis":
                return view is not None and self._curves.main(view.history).has_log_axis
            case "turn_curve" | "turn_second" | "zoom" | "show_all" | "pan":
                return self._shows_chart
            case "move_cursor":
                return self._shows_answers or self._shows_chart
            case "show_curve":
                is_moved = self._chart.cursor is not None or self._is_zoomed
                return self._shows_answers or (self._shows_chart and is_moved)
            case "turn_question":
                return self._shows_answers
            case "walk_answers" | "turn_layout":
                return self._shows_answers and self._has_samples
            case "take_better":
                return self._result is not None and self._result.better is not None
            case "show_flips":
                return self._flips is not None
            case "copy_path" | "export" | "use_elsewhere":
                return self._result is not None and self._result.path is not None
        return super().check_action(action, parameters)

    def action_toggle_pause(self) -> None:
        """Pause or resume the run; withdraw a pending pause."""
        is_paused = self._view is not None and self._view.state.state == "paused"
        self.shell.run_control.request("resume" if is_paused else "pause")

    def action_park(self) -> None:
        """Give the device back until the run is resumed."""
        self.shell.run_control.request("park")

    def action_skip(self) -> None:
        """Skip the evaluation before the first step."""
        self.shell.run_control.request("skip_evaluation")

    def action_checkpoint(self) -> None:
        """Save a checkpoint now."""
        self.shell.run_control.request("checkpoint")

    def action_stop(self) -> None:
        """Stop the run, after a dialog."""
        self.shell.run_control.request("stop")

    def action_change_settings(self) -> None:
        """Change the settings of a live run; for an ended one, open its configuration."""
        view = self.shell.state.live_run
        if view is None:
            if self._view is not None:
                self.shell.configuration.edit_run(self._view.run)
            return
        from tui.screens.dialogs import ErrorDialog
        from tui.screens.run_settings import RunSettings

        try:
            config = view.run.config()
        except UserError as error:
            self.app.push_screen(ErrorDialog("The settings cannot be changed", error))
            return

        def send(settings: dict[str, Any]) -> None:
            self.shell.run_control.change_settings(view.run, settings)

        # Pushed directly, as keys typed ahead are its text and would arrive before a message.
        self.app.push_screen(RunSettings(view, config, send))

    def action_continue_run(self) -> None:
        """Continue the run from its last checkpoint; train a finished one further."""
        self.shell.starting.continue_run(self._view.run if self._view is not None else None)

    def action_take_better(self) -> None:
        """Take the better step as the result of the run, or give it back."""
        view, better = self._view, self._result.better if self._result is not None else None
        if view is not None and better is not None:
            self.shell.runs.take_result(view.run, None if better.is_taken else better.step)

    def result_taken(self) -> None:
        """Read the result again, after another step was taken as it."""
        self._result = None
        if self._view is not None:
            self._update(self._view)
            self.refresh_bindings()

    def action_sample(self) -> None:
        """Train on the sample data."""
        self.shell.starting.start_sample()

    def action_toggle_log_axis(self) -> None:
        """Toggle the logarithmic axis."""
        if self._view is not None:
            self._curves.toggle_log(self._view.history)
            self._show_chart(self._view)

    def action_turn_curve(self, by: int) -> None:
        """Show the next or previous curve of the run."""
        self._turn(self._curves.turn, by)

    def action_turn_second(self, by: int) -> None:
        """Overlay the next or previous second curve; the cycle includes none."""
        self._turn(self._curves.turn_second, by)

    def _turn(self, turn: Callable[[RunHistory, int], object], by: int) -> None:
        if self._view is not None:
            turn(self._view.history, by)
            self._show_chart(self._view)
            self._subtitle()

    def action_zoom(self, direction: int) -> None:
        """Show fewer steps (1) or more (-1), around the cursor or the newest step."""
        self._chart.zoom_by(direction)
        self._subtitle()

    def action_show_all(self) -> None:
        """Show all steps."""
        self._chart.show_all()
        self._subtitle()

    def action_pan(self, by: int) -> None:
        """Show later steps, or earlier ones."""
        self._chart.pan(by)

    def action_move_cursor(self, by: int) -> None:
        """Move the cursor of the chart; without a chart, show the answers to another question."""
        if not self._shows_chart:
            self.action_turn_question(by)
            return
        self._chart.move_cursor(by)
        self._subtitle()

    def action_toggle_answers(self) -> None:
        """Show the answers over time, or the curve again."""
        self._answers_wanted = not self._shows_answers
        self._set_stage()

    def action_show_curve(self) -> None:
        """Go back a step: remove the cursor, else show all steps, else hide the answers."""
        if self._shows_chart and self._chart.cursor is not None:
            self._chart.drop_cursor()
        elif self._shows_chart and self._is_zoomed:
            self._chart.show_all()
        else:
            self._answers_wanted = False
            self._set_stage()
        self._subtitle()

    def action_turn_question(self, step: int) -> None:
        """Show the answers to another question."""
        self.query_one(AnswersView).turn(step)
        self._set_stage()

    def action_walk_answers(self, by: int) -> None:
        """Show the answers of a later or earlier evaluation."""
        self.query_one(AnswersView).walk_by(by)
        self._subtitle()

    def action_turn_layout(self) -> None:
        """Compare the answers with the previous, the first or the expected ones in turn, or show them all."""
        self.query_one(AnswersView).turn_layout()
        self._subtitle()

    @property
    def _scrolled(self) -> AnswersView | LogView:
        """The part that the keys scroll: the answers where they are longer than their part, else the log."""
        answers, log = self.query_one(AnswersView), self.query_one(LogView)
        return answers if self._shows_answers and answers.show_vertical_scrollbar and not log.has_focus else log

    def action_scroll(self, rows: int) -> None:
        """Scroll the answers or the log by lines."""
        self._scrolled.scroll_relative(y=rows, animate=False)

    def action_scroll_page(self, direction: int) -> None:
        """Scroll the answers or the log by pages."""
        self.action_scroll(direction * max(self._scrolled.size.height - 1, 1))

    def action_copy_path(self) -> None:
        """Copy the path of the adapter or the model."""
        if self._result is not None and self._result.path is not None:
            self.notify(copy_text(self, os.fspath(self._result.path), "the path"), markup=False)

    def action_export(self) -> None:
        """Export the result."""
        view, result = self._view, self._result
        if view is not None and result is not None and result.path is not None:
            self.shell.runs.export(view.run)

    def action_use_elsewhere(self) -> None:
        """Show how to use the result in other programs."""
        view, result = self._view, self._result
        if view is None or result is None or result.path is None:
            return
        from core.runs.catalog.trained import python_code
        from tui.screens.dialogs import COPY_CODE, COPY_PATH, elsewhere_dialog

        path, code = os.fspath(result.path), python_code(result.path, is_model=result.is_model)

        def answered(answer: str | None) -> None:
            if answer in (COPY_CODE, COPY_PATH):
                text, what = (code, "the Python code") if answer == COPY_CODE else (path, "the path")
                self.notify(copy_text(self, text, what), markup=False)

        self.app.push_screen(elsewhere_dialog(view.run.id, code, is_model=result.is_model), answered)

    @on(LogView.Cut)
    def _log_cut(self, message: LogView.Cut) -> None:
        message.stop()
        self._subtitle()

    def action_unfold_log(self) -> None:
        """Show whole lines of the log, or cut them again."""
        self.query_one(LogView).toggle_unfolded()

    def action_follow_log(self) -> None:
        """Scroll to the end of the log, and follow it."""
        self.query_one(LogView).follow()

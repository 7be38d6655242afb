"""Controller of the shown run and of the list of runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from core.runs.record.sentences import brief_id, needed_for
from core.runs.record.state import in_words
from core.text import one_line
from tui.bridge import Bridge, RunAdvanced, RunAttached, RunNews
from tui.controllers.desktop import Desktop
from tui.controllers.leaving import Leaving
from tui.draft_keeper import DraftKeeper
from tui.meters import MeterReading, SteadyMeters
from tui.state import RunView

if TYPE_CHECKING:
    from core.errors import UserError
    from core.hardware.snapshot import Device
    from core.runs.record.events import Event
    from core.runs.record.store import Run
    from tui.datasets.here import Here
    from tui.session import Session


#: Seconds between two updates of the step in the chat's title.
CHAT_TITLE_SECONDS = 5.0


class Runs:
    """Controller of runs. It alone sets the shown run in the state.

    Args:
        desktop: The panes, dialogs and notices, and the state of the app.
        bridge: The threads that read, follow and change runs.
        leaving: The controller of quitting, which may wait for a run.
        drafts: The drafts of conversations.
    """

    def __init__(self, desktop: Desktop, bridge: Bridge, leaving: Leaving, drafts: DraftKeeper) -> None:
        self._desktop, self._state = desktop, desktop.state
        self._bridge, self._leaving, self._drafts = bridge, leaving, drafts
        self._meters = SteadyMeters()
        self._landing = ""
        self._chat_told = 0.0

    def begin(
        self, name: str | None = None, *, sample: bool = False, landing: str = "", session: Session | None = None
    ) -> None:
        """Show the initial run.

        Args:
            name: The user's name for it; if None, a live run, the session's or the newest run.
            sample: Whether to start the sample run instead.
            landing: The pane to focus if no run is live; empty for the run's own.
            session: The last session.
        """
        if sample:
            self._state.expect_run()
            self._bridge.start_sample(self.started)
        elif name is not None:
            self._bridge.open_run(name, self._follow)
        else:
            self._landing = landing
            self._bridge.find_run(self._found, session)

    def _found(self, run: Run | None) -> None:
        """Show the run that the app found without a request of the user; None for none."""
        if run is None:
            self.none_found()
        else:
            self._follow(run, found=True)

    def _follow(self, run: Run, *, found: bool = False) -> None:
        self._bridge.follow(run, self.show_news, found=found)

    # Requests of the panes.

    def open(self, run: Run) -> None:
        """Show a run, and follow it."""
        self._desktop.show_pane("train")
        self._follow(run)

    def delete(self, run: Run, size: int | None) -> None:
        """Delete a run after a confirmation; a live run is refused.

        Args:
            run: The run.
            size: Its bytes on disk; None if unknown.
        """
        from tui.screens.dialogs import FOR_GOOD, YES, delete_dialog

        state = run.state()
        if not state.is_over:
            self._desktop.warn("Not deleted", f"{run.id} {in_words(state.state)}. Stop it before you delete it.")
            return

        def answered(answer: str | None) -> None:
            if answer in (YES, FOR_GOOD):
                now = answer == FOR_GOOD
                self._bridge.delete(run, partial(self._deleted, in_trash=not now), now=now)

        self._desktop.open(delete_dialog(run, state, size), answered)

    def export(self, run: Run, step: int | None = None) -> None:
        """Open the export screen of a run."""
        from tui.screens.export import ExportScreen

        if not self._desktop.is_covered:
            self._desktop.open(ExportScreen(run, step, is_on=self._state.live_run is not None))

    def evaluate(self, run: Run | None) -> None:
        """Open the form of an evaluation, and then the evaluation.

        Args:
            run: The run whose model is evaluated; None for none.
        """
        from core.evaluation.evaluation import EvaluationRequest
        from core.evaluation.record import EvaluationRecord
        from tui.screens.evaluation import EvaluationForm, EvaluationScreen

        def answered(asked: EvaluationRequest | EvaluationRecord | None) -> None:
            if asked is not None:
                self._desktop.open(EvaluationScreen(asked))

        if not self._desktop.is_covered:
            self._desktop.open(EvaluationForm(run), answered)

    def compare(self, runs: Sequence[Run]) -> None:
        """Show runs side by side."""
        from tui.screens.compare import CompareScreen

        if not self._desktop.is_covered:
            self._desktop.open(CompareScreen(runs))

    def show_details(self, run: Run) -> None:
        """Show everything about a run."""
        from tui.screens.run import RunScreen

        if not self._desktop.is_covered:
            self._desktop.open(RunScreen(run))

    def show_trash(self) -> None:
        """Show the runs in the trash."""
        from tui.screens.trash import TrashScreen

        def left(has_restored: bool | None) -> None:
            if has_restored:
                self._list_anew()

        if not self._desktop.is_covered:
            # Notices would cover its keys.
            self._desktop.clear_notices()
            self._desktop.open(TrashScreen(), left)

    def restore_last(self) -> None:
        """Restore the run that was deleted last."""
        self._bridge.restore_last(self._restored)

    def _restored(self, run: Run) -> None:
        self._desktop.tell(f"Restored {run.id}.")
        self._list_anew()

    def _list_anew(self) -> None:
        """List the runs again."""
        self.look_around()
        if self._desktop.main.slot("runs").display:
            self._bridge.list_runs(on=True)

    def look_around(self) -> None:
        """Look for data files and earlier runs to start from."""
        self._bridge.look_around(self._show_surroundings)

    def _show_surroundings(self, here: Here) -> None:
        panes = self._desktop.panes
        if panes.train is not None:
            panes.train.look_around(here)
        if panes.data is not None:
            panes.data.look_around(here)

    def _deleted(self, run: Run, *, in_trash: bool) -> None:
        """Remove a deleted run from the panes."""
        back = f" {self._desktop.keys['runs.restore'].display} restores it." if in_trash else ""
        self._desktop.tell(f"{'Moved to the trash' if in_trash else 'Deleted'}: {run.id}.{back}")
        if (pane := self._desktop.panes.runs) is not None:
            pane.forget(run)
        self.look_around()
        if (chat := self._desktop.panes.chat) is not None and chat.target == run:
            self._drafts.look()
            chat.set_target(None)
        if self._state.view is not None and self._state.view.run == run:
            self._bridge.stop_following()
            self._state.view = None
            self._show_run()
            self._bridge.find_run(self._found)

    def started(self, run: Run) -> None:
        """Show a run whose worker was started."""
        self._state.has_worker = True
        self.open(run)
        if (form := self._desktop.panes.config) is not None:
            form.look_around(anew=True)
        self._leaving.run_started(run)

    def action_failed(self, title: str, error: UserError) -> None:
        """Show an error of a user's request; without a shown run, also the empty state."""
        self._leaving.stay()
        self._state.is_starting = False
        if self._state.view is None:
            self.none_found()
        self._desktop.fail(title, error)

    # The shown run.

    def show_news(self, news: RunNews) -> None:
        """Show a run that was read from its beginning, or the new events of the followed run."""
        if isinstance(news, RunAttached):
            self._attached(news)
        else:
            self._advanced(news)
            self._leaving.run_advanced()

    def _attached(self, news: RunAttached) -> None:
        from core.runs.catalog.rows import read_model
        from core.runs.outlook.energy import Tariff
        from core.runs.outlook.time_left import Schedule

        before = self._state.view if self._state.view is None or not self._state.view.is_partial else None
        leftover = news.found and news.state.is_over
        values = news.run.values()
        schedule, tariff = Schedule.of(values), Tariff.of(values)
        view = RunView(news.run, news.state, news.history, read_model(news.run), leftover, schedule, tariff=tariff)
        view.is_partial, view.ranks = news.is_partial, news.ranks
        self._state.view = view
        if news.is_partial:
            self._show_run()
            return
        # This may be another run than the one being started.
        self._state.is_starting = self._state.is_starting and not self._state.has_worker
        if leftover:
            self._land()
        elif news.found:
            self._desktop.tell(f"Attached to {view.run.id}, which is {view.state.state}.", seconds=5)
        if before is None or before.run != view.run or before.is_live != view.is_live:
            self.offer_to_chat()
            self.look_around()
        self._show_run()

    def _advanced(self, news: RunAdvanced) -> None:
        view = self._state.view
        if view is None or view.run != news.run:
            return
        was_live, before = view.is_live, view.state.state
        for event in news.events:
            view.history.apply(event)
        view.state, view.ranks = news.state, news.ranks
        view.is_leftover = view.is_leftover and not view.is_live
        self._tell_chat(view)
        if view.is_live:
            self._call_for_help(view, before, news.events)
        if was_live != view.is_live:
            self.offer_to_chat()
            self.look_around()
            if not view.is_live:
                self._desktop.drop_question(view.run.id)
                self._announce_end(view)
                if (form := self._desktop.panes.config) is not None:
                    form.run_ended()
        self._show_run()

    def none_found(self) -> None:
        """Show that there is no run."""
        if (pane := self._desktop.panes.train) is not None:
            pane.show(None)
        self._land()

    def _land(self) -> None:
        """Focus the landing pane, unless the user has focused another pane meanwhile."""
        if self._landing and self._desktop.main.current == "train":
            self._desktop.show_pane(self._landing)
        self._landing = ""

    def await_answer(self, waiting: bool) -> None:
        """Show or hide the note that a question to the model holds up the training."""
        if waiting != self._state.answer_awaited:
            self._state.answer_awaited = waiting
            self.show_lines()

    def count_down(self) -> None:
        """Update the time left in the header between two reports of the run."""
        if self._state.live_run is not None:
            self._desktop.show_header()

    def show_lines(self) -> None:
        """Update the texts about the run in the header and its pane, without the chart."""
        self._desktop.show_header()
        if (pane := self._desktop.panes.train) is not None:
            pane.refresh_lines()

    def _announce_end(self, view: RunView) -> None:
        """Announce the end of a run: by the user's notifications, and by a notice if its pane is hidden."""
        self._desktop.call_for_attention(f"{brief_id(view.run.id)} {in_words(view.state.state)}", view.state.reason)
        if not self._desktop.main.slot("train").display:
            state = view.state
            refused = f" Its result is refused by eval.gate: {state.refused}." if state.refused else ""
            is_well = state.state in ("finished", "stopped")
            self._desktop.tell(
                one_line(f"{view.run.id} {in_words(state.state)}. {refused or state.reason}", 300),
                severity="warning" if refused else "information" if is_well else "error",
                seconds=10,
            )

    def _call_for_help(self, view: RunView, before: str, events: Sequence[Event]) -> None:
        """Send a notification if a run stalls or needs the user."""
        why = next(filter(None, map(needed_for, reversed(events))), "")
        if view.state.state == "stalled" != before:
            why = view.state.reason
        if why:
            self._desktop.call_for_attention(f"{brief_id(view.run.id)} needs you", why)

    def _tell_chat(self, view: RunView) -> None:
        """Update phase and step in the chat; the step rarely, as a new title repaints the whole pane."""
        chat, now = self._desktop.panes.chat, self._desktop.clock()
        if chat is None:
            return
        chat.note_phase(view.history.phase.name if view.history.phase is not None else "")
        if abs(now - self._chat_told) >= CHAT_TITLE_SECONDS:
            self._chat_told = now
            chat.note_step(view.state.step)

    def offer_to_chat(self) -> None:
        """Make the shown run the chat's target."""
        view = self._state.view
        if view is not None and (pane := self._desktop.panes.chat) is not None:
            if pane.target not in (None, view.run):
                # Save the present conversation before another one begins.
                self._drafts.look()
            pane.set_target(view.run, view.is_live)
            if when := self._drafts.restore_chat():
                clear = pane.keys["chat.clear"].display
                text = f"The conversation of {when} is back in the Chat pane; {clear} there begins a new one."
                self._desktop.tell(text, "Kept for you", seconds=10)
            pane.note_phase(view.history.phase.name if view.history.phase is not None else "")

    def _show_run(self) -> None:
        view = self._state.view
        self._bridge.sampling = view is None or not view.is_live or not view.history.devices
        if (pane := self._desktop.panes.train) is not None:
            pane.show(view)
        self._desktop.show_header()

    def show_devices(self, devices: Sequence[Device]) -> None:
        """Show a sample of the devices, if it differs enough from the shown one."""
        # Samples are taken during a run only if it reports no devices.
        live = self._state.live_run
        rests = live is None or live.state.state == "paused"
        reading = MeterReading(devices)
        self._state.devices = self._meters.follow(reading, rests=rests, is_watched=self._desktop.is_watched).devices
        self._desktop.show_header()

    def show_newest_devices(self) -> None:
        """Show the newest sample, when the terminal gets the focus again."""
        self._state.devices = self._meters.catch_up().devices
        self._desktop.show_header()

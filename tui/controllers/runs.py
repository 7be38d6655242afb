"""Controllers of runs: from the start card to the worker, the shown run and the list, and quitting beside a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.runs.record.events import DataEvent
from core.runs.record.sentences import brief_id, needed_for, slug_of
from core.runs.record.state import in_words
from core.text import one_line
from tui.bridge import Bridge, RunAdvanced, RunAttached, RunNews
from tui.controllers.configuration import Configuration
from tui.controllers.jobs import Jobs
from tui.controllers.returning import Returning
from tui.draft_keeper import DraftKeeper
from tui.main_screen import Desktop
from tui.meters import MeterReading, SteadyMeters
from tui.state import RunView

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.config.facts import Unkept
    from core.config.schema import Config
    from core.export.plan import ExportPlan
    from core.hardware.snapshot import Device
    from core.queue.sweep import Variant
    from core.runs.record.events import Event
    from core.runs.record.store import Labels, Run
    from tui.datasets.here import Here
    from tui.jobs import JobPage
    from tui.screens.choice import ChoiceDialog
    from tui.screens.start import StartCard
    from tui.screens.start_facts import SeenRows, Start
    from tui.session import Session


#: Seconds between two updates of the step in the chat's title.
CHAT_TITLE_SECONDS = 5.0
#: Seconds between two looks for a live run, as the queue starts one, while an ended run is shown.
LIVE_LOOK_SECONDS = 10.0


class Runs:
    """Controller of runs. It alone sets the shown run in the state.

    Args:
        desktop: The panes, dialogs and notices, and the state of the app.
        bridge: The threads that read, follow and change runs.
        leaving: The controller of quitting, which may wait for a run.
        drafts: The drafts of conversations.
        jobs: The controller of jobs.
    """

    def __init__(self, desktop: Desktop, bridge: Bridge, leaving: Leaving, drafts: DraftKeeper, jobs: Jobs) -> None:
        self._desktop, self._state, self._jobs = desktop, desktop.state, jobs
        self._bridge, self._leaving, self._drafts = bridge, leaving, drafts
        self._meters = SteadyMeters()
        self._landing = ""
        self._chat_told = self._looked = 0.0

    def begin(self, name: str | None = None, *, landing: str = "", session: Session | None = None) -> None:
        """Show the initial run.

        Args:
            name: The user's name for it; if None, a live run, the session's or the newest run.
            landing: The pane to focus; empty for the run's own.
            session: The last session.
        """
        if name is not None:
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
        """Open the export screen of a run, and then the export."""
        from tui.screens.export import ExportJobPage, ExportScreen

        def planned(plan: ExportPlan | None) -> None:
            if plan is not None:
                self._begin(ExportJobPage(plan))

        self._desktop.open_alone(ExportScreen(run, step, is_on=self._state.live_run is not None), planned)

    def _begin(self, page: JobPage[Any, Any]) -> None:
        """Begin a job, and show it."""
        self._jobs.begin(page)
        self._jobs.open(page)

    def take_result(self, run: Run, step: int | None) -> None:
        """Take a checkpoint as the result of a run; None for the result that the run wrote."""
        self._bridge.label(run, partial(replace, result=step), self._taken)

    def _taken(self, run: Run, labels: Labels) -> None:
        chat, train = self._desktop.panes.chat, self._desktop.panes.train
        if chat is not None and chat.target == run:
            self._desktop.run(chat.release, "chat-result")
        if train is not None:
            train.result_taken()
        now = f"Step {labels.result} is the result now" if labels.result is not None else "The run's own result is back"
        self._desktop.tell(f"{now}: chat, export and serve use it.")

    def evaluate(self, run: Run | None) -> None:
        """Open the form of an evaluation, and then the evaluation.

        Args:
            run: The run whose model is evaluated; None for none.
        """
        from core.evaluation.evaluation import EvaluationRequest
        from core.evaluation.record import EvaluationRecord
        from tui.screens.evaluation import EvaluationForm, EvaluationPage

        def answered(asked: EvaluationRequest | EvaluationRecord | None) -> None:
            if asked is not None:
                self._begin(EvaluationPage(asked))

        self._desktop.open_alone(EvaluationForm(run), answered)

    def compare(self, runs: Sequence[Run]) -> None:
        """Show runs side by side."""
        from tui.screens.compare import CompareScreen

        self._desktop.open_alone(CompareScreen(runs))

    def show_details(self, run: Run) -> None:
        """Show everything about a run."""
        from tui.screens.run import RunScreen

        self._desktop.open_alone(RunScreen(run))

    def show_trash(self) -> None:
        """Show the runs in the trash."""
        from tui.screens.trash import TrashScreen

        def left(has_restored: bool | None) -> None:
            if has_restored:
                self._list_anew()

        self._desktop.open_alone(TrashScreen(), left, clears=True)

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
        self._state.view, self._state.other_live = view, ""
        if news.is_partial:
            self._show_run()
            return
        # This may be another run than the one being started.
        self._state.is_starting = self._state.is_starting and not self._state.has_worker
        if news.found:
            self._land()
        if news.found and view.is_live:
            why = f": {one_line(view.state.reason, 100)}" if view.state.reason else ""
            self._desktop.tell(
                f"Attached to {brief_id(view.run.id)}, which {in_words(view.state.state)}{why}.", seconds=6
            )
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
        if any(isinstance(event, DataEvent) for event in news.events):
            self._look_for_model()
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

    def _look_for_model(self) -> None:
        """Look for the model again in Config and Data, where it was not ready before the run."""
        panes, document = self._desktop.panes, self._state.document
        if panes.config is not None:
            panes.config.look_around(anew=True)
        if panes.data is not None and document is not None:
            panes.data.configure(document)

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
        """Update the time left, or the time since the end, in the header."""
        view = self._state.view
        if view is None:
            return
        self._desktop.show_header()
        if not view.is_live and abs(self._desktop.clock() - self._looked) >= LIVE_LOOK_SECONDS:
            self._looked = self._desktop.clock()
            self._bridge.find_run(self._found_live)

    def _found_live(self, run: Run | None) -> None:
        """Name a live run in the header while an ended one is shown."""
        view, is_live = self._state.live_run, run is not None and not run.state().is_over
        self._state.other_live = slug_of(run.id) if run is not None and view is None and is_live else ""
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
                self._desktop.tell(text, "Kept for you", seconds=6)
            pane.note_phase(view.history.phase.name if view.history.phase is not None else "")

    def _show_run(self) -> None:
        view = self._state.view
        self._bridge.sampling = view is None or not view.reports_devices
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


class Leaving:
    """Controller of quitting the app.

    Args:
        desktop: The panes and dialogs, and the state of the app.
        drafts: The drafts of unsaved edits.
        returning: The controller of the session.
        stop: Asks a run to stop after a checkpoint.
        losses: Sentences about the jobs that end with the app.
    """

    def __init__(
        self,
        desktop: Desktop,
        drafts: DraftKeeper,
        returning: Returning,
        stop: Callable[[Run], None],
        losses: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._desktop, self._state, self._drafts, self._returning = desktop, desktop.state, drafts, returning
        self._stop, self._losses = stop, losses
        self._line: str | None = None
        self._awaits_start = False
        self._discards = False
        self._edits_question: ChoiceDialog | None = None
        self._run_question: ChoiceDialog | None = None

    def leave(self) -> None:
        """Quit at once, as after a signal; drafts are kept, and a run goes on."""
        self._drafts.look()
        self._returning.leave()
        self._desktop.leave(self.line())

    def leave_by_choice(self, *, discards: bool = False) -> None:
        """Quit by the user's choice; a run goes on, and a configuration without a file is kept.

        Waits for a run that is being started.

        Args:
            discards: Whether the user discards the edits of the configuration's file.
        """
        self._discards = self._discards or discards
        if self._state.is_starting and not self._awaits_start:
            self._awaits_start = True
            text = "A run is being started. The app leaves as soon as its worker is up."
            self._desktop.tell(text, seconds=8)
            return
        self._drafts.look()
        kept = self._drafts.new_config
        self._returning.leave()
        self._drafts.close(discards=self._discards)
        lines = [self.line() or ""]
        if kept:
            lines.append(f"The configuration ({kept}) is kept, but not in a file. Come back to it with: localtune-tui")
        self._desktop.leave("\n".join(line for line in lines if line) or None)

    def line(self) -> str | None:
        """The closing line: how to return to a live run, or the outputs of an ended run."""
        if self._line is not None:
            return self._line
        view = self._state.view
        if view is None or view.is_leftover:
            return None
        run, state = view.run, view.state.state
        if view.is_live:
            return f"Run {run.id} goes on ({state}). Come back with: localtune-tui"
        if view.state.refused:
            return f"Run {run.id} is finished, and eval.gate refuses its result: {view.state.refused}"
        outputs = run.adapter_path if state == "finished" else run.path
        return f"Run {run.id} {in_words(state)}: {outputs}"

    def run_started(self, run: Run) -> None:
        """Quit if the app was waiting for this run."""
        if self._awaits_start:
            self._line = f"Run {run.id} has started. Come back with: localtune-tui"
            self.leave_by_choice()

    def run_advanced(self) -> None:
        """Quit if the newest state shows that a stop requested while quitting was received."""
        view = self._state.view
        if (
            self.awaits_stop
            and view is not None
            and ("stop" in view.state.pending or view.state.state == "stopping" or not view.is_live)
        ):
            self.leave_by_choice()

    @property
    def awaits_stop(self) -> bool:
        """True if the app quits once the run has received a stop."""
        return self._line is not None

    def stay(self) -> None:
        """Cancel quitting after an error."""
        self._line, self._awaits_start, self._discards = None, False, False

    def ask(self) -> None:
        """Quit; ask first about unsaved edits, and otherwise about a live run and jobs."""
        from tui.screens.dialogs import quit_dialog, starting_dialog, unsaved_dialog

        view, top, losses = self._state.live_run, self._desktop.top, self._losses()
        if top is self._edits_question:
            # A repeated request is no answer: a key that is held down must not discard edits.
            return
        if self._awaits_start:
            self._desktop.open(starting_dialog(), self._quit_answered)
            return
        if (form := self._desktop.panes.config) is not None:
            form.commit_open()
        # A configuration without a file is kept without a question, unless its draft cannot be written.
        has_edits = self._state.is_dirty and (bool(self._state.file_name) or not self._drafts.is_config_kept)
        # A repeated request while the dialog about the run is open means its least drastic answer: with jobs, to stay.
        if has_edits and top is not self._run_question:
            self._edits_question = unsaved_dialog(self._state.file_name, view, losses, self._served)
            self._desktop.open(self._edits_question, self._unsaved_answered)
        elif not losses and (view is None or top is self._run_question):
            self.leave_by_choice()
        elif top is not self._run_question:
            # Notices would cover the answers.
            self._desktop.clear_notices()
            self._run_question = quit_dialog(view, losses, self._served)
            self._desktop.open(self._run_question, self._quit_answered)

    @property
    def _served(self) -> str:
        """The name of the model that is served; empty for none."""
        server = self._state.serving
        return server.name if server is not None and server.error is None else ""

    def _unsaved_answered(self, answer: str | None) -> None:
        from tui.screens.dialogs import DISCARD, SAVE

        desktop = self._desktop
        form = desktop.panes.config
        if answer == DISCARD:
            self.leave_by_choice(discards=True)
        elif answer == SAVE and form is not None:
            # It may have to ask for a name, or whether to overwrite another program's changes.
            desktop.uncover()
            desktop.show_pane("config", zoom=desktop.main.zoomed)
            # After the pane has the focus, which its dialog then takes.
            desktop.call_later(form.save_then, self.leave_by_choice)

    def _quit_answered(self, answer: str | None) -> None:
        from tui.screens.dialogs import LEAVE, STOP

        if answer == LEAVE:
            self.leave_by_choice()
        elif answer == STOP and (view := self._state.live_run) is not None:
            run = view.run
            self._line = f"Run {run.id} stops after a checkpoint. Continue it with: localtune-tui continue {run.id}"
            self._stop(run)


class Starting:
    """Controller of starts: checks the configuration, opens the start card, and starts the worker.

    Args:
        desktop: The panes, dialogs and notices, and the state of the app.
        bridge: The threads that start a worker.
        configuration: The controller of the configuration.
        runs: The controller of runs.
    """

    def __init__(self, desktop: Desktop, bridge: Bridge, configuration: Configuration, runs: Runs) -> None:
        self._desktop, self._state, self._keys = desktop, desktop.state, desktop.keys
        self._bridge, self._configuration, self._runs = bridge, configuration, runs

    # Requests.

    def start_in(self, pane: str) -> None:
        """Offer a run of the configuration; in the Train pane, a new start of the ended run."""
        view = self._state.view
        if pane == "train" and view is not None and not view.is_live:
            self.start_again(view.run)
        else:
            self.start()

    def start(self, back: Callable[[], None] | None = None) -> None:
        """Check the configuration, and offer a run of it; ``back`` is called if the user declines the offer."""
        document = self._state.document
        if document is None or (self._state.is_starting and self._refuse_second_run()):
            return
        form = self._desktop.panes.config
        problems = form.check() if form is not None else document.problems()
        if problems:
            name = next(iter(problems))
            if form is not None and (name != "data.train" or document.get(name) is not None):
                self._desktop.show_pane("config")
                form.refuse_start()
                return
            self._explain_missing_data()
            self._desktop.show_pane("data")
            return
        try:
            config = document.validate()
        except UserError as error:
            self._desktop.fail("The configuration is not ready", error)
            return
        self._offer(self._of_document(document, config), document.path, back)

    def start_again(self, run: Run) -> None:
        """Offer a new run with an ended run's own configuration."""
        if self._state.is_starting and self._refuse_second_run():
            return
        from core.config.document import ConfigDocument
        from core.presets.provenance import find_provenance
        from core.runs.catalog.earlier import Origin
        from tui.panes.config.model import ConfigModel
        from tui.screens.start_facts import Start

        name = brief_id(run.id)
        try:
            document = ConfigDocument.load(run.own_config_path)
            if sentence := next(iter(ConfigModel(document).problems().values()), ""):
                raise UserError(sentence, "Edit its configuration, and start that.")
            config = document.validate()
        except UserError as error:
            self._desktop.fail(f"{name} cannot be started again", error)
            return
        notes = (self._tell_edits(run),) if self._has_edits(run) else ()
        values = find_provenance(config, ConfigDocument(), origin=Origin.of(run))
        start = Start(config, slug_of(run.id), values=values, notes=notes, title=f"Start {name} again")
        self._offer(start)

    def start_sample(self) -> None:
        """Offer a run of the sample data."""
        if self._refuse_second_run():
            return
        from core.config.document import ConfigDocument
        from core.presets.provenance import find_provenance
        from sample_data import path
        from tui.screens.start_facts import Start

        try:
            document = ConfigDocument.load(path("tickets.toml"))
            config = document.validate()
        except UserError as error:
            self._desktop.fail("The sample could not be started", error)
            return
        values = find_provenance(config, document, saved_text=document.dumps())
        start = Start(config, "tickets", values=values, title="Start the sample run")
        self._open_card(start)

    def continue_run(self, asked: Run | None = None) -> None:
        """Offer to continue an ended run, or to train a finished one further; the shown one by default."""
        run = asked or (self._state.view.run if self._state.view is not None else None)
        if run is not None and run.state().state == "finished":
            self._configuration.train_further(run, self.start)
            return
        if run is None or self._refuse_second_run():
            return
        from tui.screens.start_facts import Start, find_continuation

        try:
            rest, config = find_continuation(run), run.config()
        except UserError as error:
            self._desktop.fail("The run could not be continued", error)
            return
        self._open_card(Start(config, run.id, continuation=rest, title="Continue a run"))

    def learn_corrections(self, run: Run) -> None:
        """Offer to train an ended run further on the corrections of its chat."""
        self._configuration.train_further(run, self.start, on_corrections=True)

    def _has_edits(self, run: Run) -> bool:
        """True if the app's configuration is that of the run, and was edited since."""
        from core.config.compare import differences, holding_values

        document, state = self._state.document, self._state
        if document is None or state.view is None or state.view.run != run:
            return False
        return bool(state.config_name and state.is_of_config and differences(holding_values(document), run.values()))

    def _tell_edits(self, run: Run) -> str:
        config, start = self._keys["app.config"].display, self._keys["app.start"].display
        name = one_line(self._state.config_name, 60)
        return f"{name} has other values now than {brief_id(run.id)}: {config}, then {start} starts those."

    def _explain_missing_data(self) -> None:
        pane = self._desktop.panes.data
        use, start = self._keys["data.train"].display, self._keys["app.start"].display
        if pane is not None and pane.view is not None:
            text = f"{use} uses {one_line(pane.view.path.name, 60)} for training, and {start} starts then."
        else:
            text = f"{self._keys['data.open'].display} opens a file, {use} uses it for training, {start} starts."
        self._desktop.warn("No training data yet", text)

    def _refuse_second_run(self) -> bool:
        """Refuse a second live run with a warning, as two do not fit on a device; returns True if refused."""
        view = self._state.live_run
        if self._state.is_starting:
            # The key was pressed twice for the same start.
            self._desktop.warn("A run is starting", "It appears as soon as its worker is up.")
            return True
        if view is not None:
            self._desktop.warn(
                "Another run is live", f"{view.run.id} is {view.state.state}. Stop it before you start another one."
            )
        return view is not None

    # The start card.

    def _offer(self, start: Start, source: Path | None = None, back: Callable[[], None] | None = None) -> None:
        """Open the start card of a run; while another run is live, offer the queue."""
        view = self._state.live_run
        if view is not None:
            self._offer_to_wait(view, start.config, start.name, source, back)
        else:
            self._open_card(start, back)

    def _open_card(self, start: Start, back: Callable[[], None] | None = None) -> None:
        """Open the start card of a run at once, so that it gets keys typed ahead."""
        from tui.screens.start import StartCard

        if self._desktop.find_screen(StartCard) is not None:
            # A second request before the card was painted.
            return

        card = StartCard(start, self._seen, self._choose_preset)

        def answered(answer: str | None) -> None:
            if answer == "start":
                self._begin(card)
            elif answer == "rows":
                self._show_rows()
            elif answer == "options":
                self._show_options()
            elif answer == "former":
                self._configuration.bring_back()
            elif back is not None:
                back()

        # Notices would cover the card's keys, and the card repeats them.
        self._desktop.clear_notices()
        self._desktop.open(card, answered)

    def _begin(self, card: StartCard) -> None:
        """Start the run of a card; ask first if it cannot meet a wish about its time."""
        from core.runs.outlook.forecast import wants_plan

        config, plan = card.start.config, card.found.plan
        if card.start.continuation is not None or not wants_plan(config):
            self._start(card.start)
            return

        async def ask() -> None:
            from core.commands.starting import unmet_now

            is_known = plan is not None and plan.estimate is not None and plan.estimate.by != "guess"
            unmet = plan.unmet if plan is not None and is_known else await asyncio.to_thread(unmet_now, config)
            if await self._agrees_to(unmet):
                self._start(card.start)

        self._desktop.run(ask, "wishes")

    async def _agrees_to(self, unmet: Sequence[Unkept]) -> bool:
        """Ask whether to start a run with unmet wishes; only if an earlier run measured the pace."""
        from tui.screens.dialogs import YES, unmet_dialog

        measured = [wish for wish in unmet if wish.is_measured]
        if not measured:
            return True
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def answered(chosen: str | None) -> None:
            if not answer.done():
                answer.set_result(chosen == YES)

        self._desktop.open(unmet_dialog(measured), answered)
        return await answer

    def _of_document(self, document: ConfigDocument, config: Config) -> Start:
        """The run of the app's configuration.

        Args:
            document: The configuration.
            config: The same configuration, validated.
        """
        from core.presets.provenance import find_provenance
        from core.runs.catalog.earlier import run_name
        from tui.screens.start_facts import Start

        path, state = document.path, self._state
        notes: list[str] = []
        if state.is_dirty and path is not None:
            notes.append(f"The values are as edited; {path.name} does not have them until they are saved.")
        return Start(
            config,
            path.stem if path is not None else run_name(document, state.origin),
            values=find_provenance(config, document, origin=state.origin, saved_text=state.saved_text),
            is_choosing=self._configuration.presets.is_pending,
            former=state.former,
            notes=tuple(notes),
            has_form=True,
        )

    def follow(self) -> None:
        """Update the open card after a change of the configuration."""
        if not self._desktop.is_covered:
            return
        from tui.screens.start import StartCard

        card, document = self._desktop.find_screen(StartCard), self._state.document
        if card is None or document is None or not card.start.has_form:
            return
        # While a value is invalid, the card keeps the last valid configuration.
        with suppress(UserError):
            card.show(self._of_document(document, document.validate()))

    def _seen(self, start: Start) -> SeenRows | None:
        """The facts that the Data pane knows about a run's rows."""
        pane = self._desktop.panes.data
        if pane is None or not start.has_form or len(start.train) != 1:
            return None
        return pane.seen(Path(start.train[0]))

    def _choose_preset(self) -> None:
        if (form := self._desktop.panes.config) is not None:
            self._desktop.run(form.action_presets, "start-preset")

    def _show_rows(self) -> None:
        self._desktop.show_pane("data")
        if (pane := self._desktop.panes.data) is not None:
            pane.action_next_problem(1)

    def _show_options(self) -> None:
        self._desktop.show_pane("config")
        if (form := self._desktop.panes.config) is not None:
            form.show_warning()

    # The start.

    def _start(self, start: Start) -> None:
        """Start the worker of a card's run, or of the run that it continues, once the chat has freed its memory."""
        if self._refuse_second_run():
            return
        rest = start.continuation

        async def work() -> None:
            if (pane := self._desktop.panes.chat) is not None:
                await pane.release()
            if rest is None:
                self._bridge.start(start.config, start.name, self._started)
            else:
                self._bridge.continue_run(rest.run, self._runs.started)

        if rest is None:
            self._desktop.show_pane("train")
        self._state.expect_run()
        self._desktop.run(work, "start")

    def _started(self, run: Run) -> None:
        self._runs.started(run)
        self._configuration.follow_run(run)

    # The queue.

    def show_queue(self) -> None:
        """Show the queue."""
        from tui.screens.queue import QueueScreen

        def left(run: Run | None) -> None:
            if run is not None:
                self._runs.open(run)

        self._desktop.open_alone(QueueScreen(self.add_to_queue, self.add_sweep), left, clears=True)

    async def add_to_queue(self) -> str:
        """Add a run of the app's configuration to the queue; returns a message with the result.

        Raises:
            UserError: If the configuration is not ready, or the queue cannot be written.
        """
        document = self._state.document
        if document is None:
            raise UserError("There is no configuration.", "Open one, or choose data to train on.")
        start = self._of_document(document, document.validate())
        number = await self._add(start.config, start.name, document.path)
        return f"Entry {number} added, with the current configuration." if number is not None else "Nothing added."

    async def add_sweep(self, text: str) -> str:
        """Add a run of the app's configuration for each combination of values in a text, ``rank = 8, 16``; returns a
        message with the result.

        Raises:
            UserError: If the text or a configuration is invalid, or the queue cannot be written.
        """
        from core.queue.sweep import add_variants

        document = self._state.document
        if document is None:
            raise UserError("There is no configuration.", "Open one, or choose data to train on.")
        start = self._of_document(document, document.validate())
        variants, unmet = await asyncio.to_thread(_variants, document, text)
        if not await self._agrees_to(unmet):
            return "Nothing added."
        source = str(document.path.absolute()) if document.path else ""
        added = await asyncio.to_thread(add_variants, variants, start.name, source)
        entries = "1 entry" if len(added) == 1 else f"{len(added)} entries"
        return f"Added {entries} (sweep {added[0].sweep}) from the current configuration."

    async def _add(self, config: Config, name: str, source: Path | None) -> int | None:
        """Add a run to the queue; returns its number, None if the user does not agree to unmet wishes."""
        if not await self._agrees_to(await asyncio.to_thread(_unmet_in_queue, config)):
            return None
        return await asyncio.to_thread(_add_entry, config, name, source)

    def _offer_to_wait(
        self, view: RunView, config: Config, name: str, source: Path | None, back: Callable[[], None] | None
    ) -> None:
        """Offer to queue a run behind the live one, as two do not fit on a device."""
        from tui.screens.dialogs import ADD, queue_dialog

        def answered(answer: str | None) -> None:
            if answer == ADD:
                self._desktop.run(partial(self._add_and_start, config, name, source), "queue")
            elif back is not None:
                back()

        self._desktop.open(queue_dialog(view, name), answered)

    async def _add_and_start(self, config: Config, name: str, source: Path | None) -> None:
        from core.queue.status import start_runner

        try:
            if (number := await self._add(config, name, source)) is None:
                return
            await asyncio.to_thread(start_runner)
        except UserError as error:
            self._desktop.fail("The run was not queued", error)
            return
        view = self._state.live_run
        after = f" when {brief_id(view.run.id)} has ended" if view is not None else " when the device is free"
        self._desktop.tell(one_line(f"Entry {number} of the queue: {name} starts{after}.", 200), seconds=6)


def _variants(document: ConfigDocument, text: str) -> tuple[list[Variant], list[Unkept]]:
    """The runs of a sweep, checked, and their unmet wishes, each once; the deadline of the first run alone, as it is
    not known when the others start. Blocks.

    Raises:
        UserError: If the text or a configuration is invalid.
    """
    from core.commands.starting import unmet_in_queue
    from core.commands.sweep import check_variants
    from core.queue.estimate import Estimator
    from core.queue.sweep import axis_of, combinations, make_variants
    from core.runs.outlook.forecast import unmet, wants_plan

    variants = make_variants(document, combinations([axis_of(part, document) for part in text.split(";")]))
    check_variants(variants)
    estimator, (first, *others) = Estimator(), [variant.config for variant in variants]
    found = unmet_in_queue(first, estimator)
    for config in filter(wants_plan, others):
        found += unmet(config, estimator.estimate(config), None)
    return variants, list({str(wish): wish for wish in found}.values())


def _unmet_in_queue(config: Config) -> Sequence[Unkept]:
    """The unmet wishes of a run at the end of the queue; blocks.

    Raises:
        UserError: If the queue cannot be read.
    """
    from core.commands.starting import unmet_in_queue
    from core.queue.estimate import Estimator
    from core.runs.outlook.forecast import wants_plan

    return unmet_in_queue(config, Estimator()) if wants_plan(config) else ()


def _add_entry(config: Config, name: str, source: Path | None) -> int:
    """Check model and data of a run, and add it to the queue; blocks.

    Raises:
        UserError: If model or data are refused, or the queue cannot be written.
    """
    from core.commands.train import check_data, check_model
    from core.queue import store
    from core.queue.entry import QueueEntry

    check_model(config)
    check_data(config)
    entry = QueueEntry(id=1, name=name, added=time.time(), source=str(source.absolute()) if source else "")
    (added,) = store.add([(entry, config)])
    return added.id

"""The part of the app that has to do with runs: they are started, followed and left."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from textual import on, work
from textual.app import App
from textual.css.query import NoMatches

from core.errors import UserError
from core.hub_uri import short_name
from core.text import one_line
from tui import messages
from tui.bridge import Bridge
from tui.draft_keeper import DraftKeeper
from tui.main_screen import MainScreen
from tui.state import AppState, RunView
from tui.widgets.lists.run_list import RunList
from tui.widgets.status_bar import StatusBar

if TYPE_CHECKING:
    from core.runs.store import Run


#: Seconds between two updates of the step in the chat's title.
CHAT_TITLE_SECONDS = 5.0


class RunDesk(App[str]):
    """Holds the state; the handlers here are the only place where the run in it changes."""

    def __init__(self) -> None:
        self.state = AppState()
        super().__init__()
        self.clock: Callable[[], float] = time.time
        """The present, in Unix seconds."""
        self.bridge = Bridge(self)
        self.drafts = DraftKeeper(self)
        self._leave_line: str | None = None
        self._chat_told = 0.0

    @property
    def main(self) -> MainScreen:
        """The screen with the panes, whatever lies over it."""
        return next(screen for screen in self.screen_stack if isinstance(screen, MainScreen))

    def pane(self, name: str) -> Any:
        """A pane, by its id; None until it has been loaded."""
        return self.main.slot(name).pane

    # Leaving.

    def leave(self) -> None:
        """Leave at once, whatever is on the screen, because that was asked from outside: a run is not affected, and
        what is not saved is kept."""
        self.drafts.look()
        self.exit(self.leave_line())

    def leave_by_choice(self) -> None:
        """Leave because the user wants to, who was asked about edits; nothing is kept, and a run is not affected."""
        self.drafts.drop()
        self.exit(self.leave_line())

    def leave_line(self) -> str | None:
        """The one line to print after the app: how to come back to a live run, or where an ended one's outputs are."""
        if self._leave_line is not None:
            return self._leave_line
        view = self.state.view
        if view is None or view.is_leftover:
            return None
        run, state = view.run, view.state.state
        if view.is_live:
            return f"Run {run.id} goes on ({state}). Come back with: localtune-tui watch {run.id}"
        outputs = run.adapter_path if state == "finished" else run.path
        return f"Run {run.id} is {state}: {outputs}"

    async def action_quit(self) -> None:
        """Leave; ask first what is to become of edits that are not saved, and else of a run that is on."""
        from tui.screens.dialogs import QuitDialog, UnsavedDialog

        view = self.state.live_run
        if isinstance(self.screen, UnsavedDialog):
            # Asked again, which is no answer: edits are not given up by a key that is held down.
            return
        if (form := self.pane("config")) is not None:
            form.commit_open()
        # Asked again while the question is on the screen, the least drastic answer is meant.
        if self.state.is_dirty and not isinstance(self.screen, QuitDialog):
            self.push_screen(UnsavedDialog(self.state.file_name, view), self._unsaved_answered)
        elif view is None or isinstance(self.screen, QuitDialog):
            self.leave_by_choice()
        else:
            self.push_screen(QuitDialog(view), self._quit_answered)

    def _unsaved_answered(self, answer: str | None) -> None:
        from tui.screens.dialogs import DISCARD, SAVE

        form = self.pane("config")
        if answer == DISCARD:
            self.leave_by_choice()
        elif answer == SAVE and form is not None:
            # It may have to ask for a name, or whether to overwrite what somebody else has written.
            while len(self.screen_stack) > 1:
                self.pop_screen()
            self.main.show_pane("config", zoom=self.main.zoomed)
            # The pane gets the keys first; what it asks for gets them then.
            self.call_later(form.save_then, self.leave_by_choice)

    def _quit_answered(self, answer: str | None) -> None:
        from tui.screens.dialogs import LEAVE, STOP

        if answer == LEAVE:
            self.leave_by_choice()
        elif answer == STOP and (view := self.state.live_run) is not None:
            self._leave_line = (
                f"Run {view.run.id} stops after a checkpoint. Continue it with: localtune-tui continue {view.run.id}"
            )
            self.bridge.control(view.run, "stop")

    # What the panes ask for.

    @on(messages.StartRequested)
    def action_start(self) -> None:
        """Check the configuration and start a run of it."""
        document = self.state.document
        if document is None or self._refuse_second_run():
            return
        form = self.pane("config")
        problems = form.check() if form is not None else document.problems()
        if problems:
            name, sentence = next(iter(problems.items()))
            if form is not None and (name != "data.train" or document.get(name) is not None):
                self.main.show_pane("config")
                form.refuse_start()
                return
            more = f" ({len(problems) - 1} more.)" if len(problems) > 1 else ""
            self.warn("The configuration is not ready", f"{sentence}{more}")
            self.main.show_pane("data")
            return
        try:
            config = document.validate()
        except UserError as error:
            self.fail("The configuration is not ready", error)
            return
        train = config.data.train
        name = (
            document.path.stem
            if document.path is not None
            else short_name(train if isinstance(train, str) else train[0])
        )
        if self.state.is_dirty and document.path is not None:
            text = f"The run uses the values as edited; {document.path.name} does not have them until they are saved."
            self.notify(one_line(text, 300), title="Not saved", timeout=8, markup=False)
        self.main.show_pane("train")
        self._start_with_free_memory(lambda: self.bridge.start(config, name))

    @on(messages.SampleRequested)
    def _start_sample(self) -> None:
        if not self._refuse_second_run():
            self.main.show_pane("train")
            self._start_with_free_memory(self.bridge.start_sample)

    @on(messages.ContinueRequested)
    def _continue(self, message: messages.ContinueRequested) -> None:
        run = message.run or (self.state.view.run if self.state.view is not None else None)
        if run is not None and not self._refuse_second_run():
            self._start_with_free_memory(lambda: self.bridge.continue_run(run))

    @work(group="start")
    async def _start_with_free_memory(self, start: Callable[[], None]) -> None:
        """Start a worker once the chat engine has let go of the memory that the worker will need."""
        if (pane := self.pane("chat")) is not None:
            await pane.release()
        start()

    def _refuse_second_run(self) -> bool:
        """Say so when a run is on: two do not fit on one device."""
        view = self.state.live_run
        if view is not None:
            self.warn("A run is on", f"{view.run.id} is {view.state.state}. Stop it before another one starts.")
        return view is not None

    @on(messages.RunStarted)
    def _run_started(self, message: messages.RunStarted) -> None:
        self._open(message.run)
        if (form := self.pane("config")) is not None:
            form.look_around(anew=True)

    @on(messages.OpenRunRequested)
    def _open_run(self, message: messages.OpenRunRequested) -> None:
        self._open(message.run)

    @on(RunList.Chosen)
    def _run_chosen(self, message: RunList.Chosen) -> None:
        self._open(message.row.run)

    def _open(self, run: Run) -> None:
        self.main.show_pane("train")
        self.bridge.follow(run)

    @on(messages.ActionFailed)
    def _action_failed(self, message: messages.ActionFailed) -> None:
        self._leave_line = None
        if self.state.view is None:
            self._no_run_found()
        self.fail(message.title, message.error)

    def fail(self, title: str, error: UserError) -> None:
        """A dialog for something that the user asked for and that did not work."""
        from tui.screens.dialogs import error_dialog

        self.push_screen(error_dialog(title, error))

    def warn(self, title: str, text: str) -> None:
        """A notice that needs no answer."""
        self.notify(one_line(text, 400), title=one_line(title, 60), severity="warning", timeout=6, markup=False)

    # The run that is shown.

    @on(messages.RunAttached)
    def _run_attached(self, message: messages.RunAttached) -> None:
        from core.runs.catalog import read_model

        before = self.state.view
        leftover = message.found and message.state.is_over
        view = RunView(message.run, message.state, message.history, read_model(message.run), leftover)
        self.state.view = view
        if leftover:
            self.land_without_run()
        elif message.found:
            self.notify(f"Attached to {view.run.id}, which is {view.state.state}.", timeout=5, markup=False)
        if before is None or before.run != view.run or before.is_live != view.is_live:
            self._set_chat_target(view)
        self._show_run()

    @on(messages.RunAdvanced)
    def _run_advanced(self, message: messages.RunAdvanced) -> None:
        view = self.state.view
        if view is None or view.run != message.run:
            return
        was_live = view.is_live
        for event in message.events:
            view.history.apply(event)
        view.state = message.state
        view.is_leftover = view.is_leftover and not view.is_live
        self._tell_chat(view)
        if was_live != view.is_live:
            self._set_chat_target(view)
            if not view.is_live:
                self._announce_end(view)
                if (form := self.pane("config")) is not None:
                    form.run_ended()
        self._show_run()

    @on(messages.NoRunFound)
    def _no_run_found(self) -> None:
        if (pane := self.pane("train")) is not None:
            pane.show(None)
        self.land_without_run()

    def land_without_run(self) -> None:
        """Where to begin when no run is on; the app knows whether there is something better than the run's pane."""

    @on(messages.AnswerAwaited)
    def _answer_awaited(self, message: messages.AnswerAwaited) -> None:
        if message.waiting != self.state.answer_awaited:
            self.state.answer_awaited = message.waiting
            self.show_header()
            if (pane := self.pane("train")) is not None:
                pane.refresh_lines()

    def _announce_end(self, view: RunView) -> None:
        """A run has ended while it was watched: say so where its pane is not on the screen."""
        if not self.main.slot("train").display:
            severity = "information" if view.state.state in ("finished", "stopped") else "error"
            self.notify(
                one_line(f"{view.run.id} is {view.state.state}. {view.state.reason}", 300),
                severity=cast(Any, severity),
                timeout=10,
                markup=False,
            )

    def _tell_chat(self, view: RunView) -> None:
        """Tell the chat's title the step now and then: writing to a border repaints a whole pane."""
        chat, now = self.pane("chat"), self.clock()
        if chat is None:
            return
        chat.note_phase(view.history.phase.name if view.history.phase is not None else "")
        if abs(now - self._chat_told) >= CHAT_TITLE_SECONDS:
            self._chat_told = now
            chat.note_step(view.state.step)

    def _set_chat_target(self, view: RunView) -> None:
        if (pane := self.pane("chat")) is not None:
            pane.set_target(view.run, view.is_live)
            if when := self.drafts.restore_chat():
                clear = pane.keys["chat.clear"].display
                text = f"The conversation of {when} is back in the Chat pane; {clear} there begins a new one."
                self.notify(text, title="Kept for you", timeout=10, markup=False)
            pane.note_phase(view.history.phase.name if view.history.phase is not None else "")

    def _show_run(self) -> None:
        view = self.state.view
        self.bridge.sampling = view is None or not view.is_live or not view.history.devices
        if (pane := self.pane("train")) is not None:
            pane.show(view)
        self.show_header()

    @on(messages.DevicesSampled)
    def _devices_sampled(self, message: messages.DevicesSampled) -> None:
        self.state.devices = message.devices
        self.show_header()

    @on(messages.RunsListed)
    def _runs_listed(self, message: messages.RunsListed) -> None:
        if (pane := self.pane("runs")) is not None:
            pane.show(message.rows)

    def show_header(self) -> None:
        """Bring the header up to date."""
        with suppress(NoMatches):  # The first messages may come before the header does.
            main = self.main
            main.query_one(StatusBar).show(self.state, loss=not main.slot("train").display)

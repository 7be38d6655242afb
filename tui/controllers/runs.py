"""Runs: started, continued, found and followed, and the display of the followed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.errors import UserError
from core.runs.names import brief_id, slug_of
from core.text import one_line
from tui.bridge import Bridge
from tui.controllers.desktop import Desktop
from tui.draft_keeper import DraftKeeper
from tui.messages import RunAdvanced, RunAttached, RunsListed
from tui.state import AppState, RunView

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.hardware.snapshot import Device
    from core.runs.store import Run
    from tui.session import Session


#: Seconds between two updates of the step in the chat's title.
CHAT_TITLE_SECONDS = 5.0


class Runs:
    """The controller of runs: it starts runs and follows one; nothing else changes the run in the state.

    Args:
        clock: The present, in Unix seconds.
    """

    def __init__(
        self, desktop: Desktop, state: AppState, bridge: Bridge, drafts: DraftKeeper, clock: Callable[[], float]
    ) -> None:
        self._desktop, self._state, self._bridge, self._drafts, self._clock = desktop, state, bridge, drafts, clock
        self._landing = ""
        self._chat_told = 0.0

    def begin(
        self, name: str | None = None, *, sample: bool = False, landing: str = "", session: Session | None = None
    ) -> None:
        """Show the run that the app is opened with.

        Args:
            name: The user's name for it; a live one, the last one shown or the newest one where None.
            sample: Whether to start the sample run instead.
            landing: The pane to begin in where no run is live; the run's own where empty.
            session: The last session.
        """
        if sample:
            self._bridge.start_sample()
        elif name is not None:
            self._bridge.open_run(name)
        else:
            self._landing = landing
            self._bridge.find_run(session)

    # Requests of the panes.

    def start(self) -> None:
        """Check the configuration and start a run of it."""
        document = self._state.document
        if document is None or self._refuse_second_run():
            return
        form = self._desktop.panes.config
        problems = form.check() if form is not None else document.problems()
        if problems:
            name, sentence = next(iter(problems.items()))
            if form is not None and (name != "data.train" or document.get(name) is not None):
                self._desktop.show_pane("config")
                form.refuse_start()
                return
            more = f" ({len(problems) - 1} more.)" if len(problems) > 1 else ""
            self._desktop.warn("The configuration is not ready", f"{sentence}{more}")
            self._desktop.show_pane("data")
            return
        try:
            config = document.validate()
        except UserError as error:
            self._desktop.fail("The configuration is not ready", error)
            return
        name = self._state.config_name if document.path is None else document.path.stem
        if self._state.is_dirty and document.path is not None:
            text = f"The run uses the values as edited; {document.path.name} does not have them until they are saved."
            self._desktop.tell(one_line(text, 300), "Not saved", seconds=8)
        self._desktop.show_pane("train")
        self._start_with_free_memory(lambda: self._bridge.start(config, name))

    def again(self, run: Run) -> None:
        """Start an ended run again; ask which way where its configuration is open with other values by now."""
        document, name = self._state.document, self._state.config_name
        if document is None or not self._state.is_of_config or not name or not self._differs(run, document):
            self.start_again(run)
            return
        from tui.screens.dialogs import AGAIN, AS_EDITED, again_dialog

        def answered(answer: str | None) -> None:
            if answer == AGAIN:
                self.start_again(run)
            elif answer == AS_EDITED:
                self.start()

        self._desktop.open(again_dialog(run.id, name), answered)

    def start_again(self, run: Run) -> None:
        """Start a new run of a run's own configuration, its ``run.toml``."""
        if self._refuse_second_run():
            return
        from core.config.document import ConfigDocument
        from tui.panes.config.model import ConfigModel

        title = f"{brief_id(run.id)} cannot be started again"
        try:
            document = ConfigDocument.load(run.config_path)
            if sentence := next(iter(ConfigModel(document).problems().values()), ""):
                raise UserError(sentence, "Edit its configuration, and start that.")
            config = document.validate()
        except UserError as error:
            self._desktop.fail(title, error)
            return
        self._desktop.show_pane("train")
        self._desktop.tell(f"Started again, as {brief_id(run.id)} was.")
        self._start_with_free_memory(lambda: self._bridge.start(config, slug_of(run.id)))

    def _differs(self, run: Run, document: ConfigDocument) -> bool:
        """Whether a configuration has other values than a run was started with."""
        from core.config.compare import differences, holding_values

        return bool(differences(holding_values(document), run.values()))

    def start_sample(self) -> None:
        """Start a run of the sample data."""
        if not self._refuse_second_run():
            self._desktop.show_pane("train")
            self._start_with_free_memory(self._bridge.start_sample)

    def continue_run(self, asked: Run | None) -> None:
        """Continue an ended run; the one that is shown where None is given."""
        run = asked or (self._state.view.run if self._state.view is not None else None)
        if run is not None and not self._refuse_second_run():
            self._start_with_free_memory(lambda: self._bridge.continue_run(run))

    def _start_with_free_memory(self, start: Callable[[], None]) -> None:
        """Start a worker once the chat engine has freed the memory that the worker will need."""

        async def work() -> None:
            if (pane := self._desktop.panes.chat) is not None:
                await pane.release()
            start()

        self._desktop.run(work, "start")

    def _refuse_second_run(self) -> bool:
        """Refuse a second live run, with a message: two do not fit on one device."""
        view = self._state.live_run
        if view is not None:
            self._desktop.warn(
                "A run is on", f"{view.run.id} is {view.state.state}. Stop it before another one starts."
            )
        return view is not None

    def started(self, run: Run) -> None:
        """Show a run whose worker has been started."""
        self.open(run)
        if (form := self._desktop.panes.config) is not None:
            form.look_around(anew=True)

    def open(self, run: Run) -> None:
        """Show a run, and follow it."""
        self._desktop.show_pane("train")
        self._bridge.follow(run)

    def action_failed(self, title: str, error: UserError) -> None:
        """Show that a request of the user failed; without a run, the request may have been to show one."""
        if self._state.view is None:
            self.none_found()
        self._desktop.fail(title, error)

    # The run that is shown.

    def attached(self, message: RunAttached) -> None:
        """Show a run that has been read from its beginning."""
        from core.runs.catalog import read_model

        before = self._state.view
        leftover = message.found and message.state.is_over
        view = RunView(message.run, message.state, message.history, read_model(message.run), leftover)
        self._state.view = view
        if leftover:
            self._land()
        elif message.found:
            self._desktop.tell(f"Attached to {view.run.id}, which is {view.state.state}.", seconds=5)
        if before is None or before.run != view.run or before.is_live != view.is_live:
            self.offer_to_chat()
        self._show_run()

    def advanced(self, message: RunAdvanced) -> None:
        """Show the new events of the followed run."""
        view = self._state.view
        if view is None or view.run != message.run:
            return
        was_live = view.is_live
        for event in message.events:
            view.history.apply(event)
        view.state = message.state
        view.is_leftover = view.is_leftover and not view.is_live
        self._tell_chat(view)
        if was_live != view.is_live:
            self.offer_to_chat()
            if not view.is_live:
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
        """Focus the requested pane where no run is live, unless the user has gone elsewhere since."""
        if self._landing and self._desktop.main.current == "train":
            self._desktop.show_pane(self._landing)
        self._landing = ""

    def await_answer(self, waiting: bool) -> None:
        """Show whether a question to the model holds up the training."""
        if waiting != self._state.answer_awaited:
            self._state.answer_awaited = waiting
            self._desktop.show_header()
            if (pane := self._desktop.panes.train) is not None:
                pane.refresh_lines()

    def _announce_end(self, view: RunView) -> None:
        """Announce the end of a run that was watched, where its pane is not on the screen."""
        if not self._desktop.main.slot("train").display:
            self._desktop.tell(
                one_line(f"{view.run.id} is {view.state.state}. {view.state.reason}", 300),
                severity="information" if view.state.state in ("finished", "stopped") else "error",
                seconds=10,
            )

    def _tell_chat(self, view: RunView) -> None:
        """Update the step in the chat's title now and then: writing to a border repaints a whole pane."""
        chat, now = self._desktop.panes.chat, self._clock()
        if chat is None:
            return
        chat.note_phase(view.history.phase.name if view.history.phase is not None else "")
        if abs(now - self._chat_told) >= CHAT_TITLE_SECONDS:
            self._chat_told = now
            chat.note_step(view.state.step)

    def offer_to_chat(self) -> None:
        """Offer the run that is shown to the chat, where there is one."""
        view = self._state.view
        if view is not None and (pane := self._desktop.panes.chat) is not None:
            if pane.target not in (None, view.run):
                # Another conversation begins, and this one stays.
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
        """Show the devices as sampled by this process."""
        self._state.devices = devices
        self._desktop.show_header()

    def listed(self, message: RunsListed) -> None:
        """Show the runs on this machine."""
        if (pane := self._desktop.panes.runs) is not None:
            pane.show(message.rows)

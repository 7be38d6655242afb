"""Control of the run that is shown: pause, save, stop, settings, kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from core.runs import changes
from tui.bridge import Bridge
from tui.controllers.desktop import Desktop
from tui.controllers.leaving import Leaving
from tui.messages import ControlAnswered, ControlFailed
from tui.state import AppState

if TYPE_CHECKING:
    from core.runs.store import Run
    from tui.screens.run_settings import RunSettings


class RunControl:
    """The controller of a live run: it confirms a stop, sends commands, and shows the worker's answers."""

    def __init__(self, desktop: Desktop, state: AppState, bridge: Bridge, leaving: Leaving) -> None:
        self._desktop, self._state, self._bridge, self._leaving = desktop, state, bridge, leaving

    def request(self, command: str) -> None:
        """Send a command to the worker; a stop is confirmed first."""
        from tui.screens.dialogs import stop_dialog

        view = self._state.live_run
        if view is None:
            self._desktop.warn("No run is on", "There is nothing to control.")
        elif command == "stop":
            self._desktop.open(stop_dialog(view), self._stop_chosen(view.run))
        else:
            self._bridge.control(view.run, command)

    def change_settings(self, run: Run, settings: Mapping[str, Any]) -> None:
        """Change the settings of a run."""
        self._bridge.control(run, "set", **settings)

    def _stop_chosen(self, run: Run) -> Callable[[str | None], None]:
        """Carry out the answer to the question about a stop of this run; the one shown may be another by then."""
        from tui.screens.dialogs import KILL, SIGNAL, STOP, STOP_NOW

        def chosen(answer: str | None) -> None:
            if answer == STOP:
                self._bridge.control(run, "stop")
            elif answer == STOP_NOW:
                self._ask_to_stop_now(run)
            elif answer == SIGNAL:
                self._bridge.signal(run)
            elif answer == KILL:
                self._ask_to_kill(run)

        return chosen

    def _ask_to_stop_now(self, run: Run) -> None:
        """Stop a run without a checkpoint; ask once more where steps would be lost."""
        from tui.screens.dialogs import YES, stop_now_dialog

        view = self._state.live_run
        if view is None or view.run != run:
            self._desktop.warn("Nothing is stopped", f"{run.id} has ended by itself.")
            return

        def answered(answer: str | None) -> None:
            if answer == YES:
                self._bridge.control(run, "stop", now=True)

        if view.step > (view.saved_step or 0):
            self._desktop.open(stop_now_dialog(view), answered)
        else:
            answered(YES)

    def _ask_to_kill(self, run: Run) -> None:
        from tui.screens.dialogs import YES, kill_dialog

        view = self._state.live_run
        if view is None or view.run != run:
            self._desktop.warn("Nothing is killed", f"{run.id} has ended by itself.")
            return

        def answered(answer: str | None) -> None:
            if answer == YES:
                self._bridge.kill(run)

        self._desktop.open(kill_dialog(view), answered)

    def answered(self, message: ControlAnswered) -> None:
        """Show the result of a command; after a stop that was requested while quitting, quit."""
        if message.command == "stop" and self._leaving.awaits_stop:
            self._leaving.leave_by_choice()
            return
        if message.command == "set":
            self._settings_changed(message)
            return
        # The worker answers between two steps, when the command is done; only a stop is still pending.
        done = {
            "pause": "Paused",
            "resume": "Resumed",
            "checkpoint": "Checkpoint saved",
            "stop": "Stopping without a checkpoint" if message.args.get("now") else "Stopping after a checkpoint",
            "signal": "The signal is sent; the run stops after a checkpoint",
            "kill": "Killed",
        }
        self._desktop.tell(done.get(message.command, message.command), seconds=3)

    def _settings_changed(self, message: ControlAnswered) -> None:
        if (dialog := self._settings_dialog) is not None:
            dialog.accept(message.args)
        step = message.answer.get("step")
        after = f" after step {step}" if isinstance(step, int) and step else ""
        self._desktop.tell(f"Changed{after}: {changes.in_words(message.args)}")

    def failed(self, message: ControlFailed) -> None:
        """Show the worker's refusal; where it does not answer to a stop, ask how else to stop it."""
        from tui.screens.dialogs import unanswered_dialog

        self._leaving.stay()
        view = self._state.live_run
        if message.command == "set" and (dialog := self._settings_dialog) is not None:
            dialog.refuse(message.error)
        elif message.command == "stop" and view is not None and view.run == message.run and view.has_process:
            self._desktop.open(unanswered_dialog(message.error), self._stop_chosen(message.run))
        else:
            self._desktop.fail(f"{message.command.capitalize()} failed", message.error)

    @property
    def _settings_dialog(self) -> RunSettings | None:
        """The open dialog of the settings, whatever covers it; None where none is open."""
        from tui.screens.run_settings import RunSettings

        return self._desktop.find_screen(RunSettings)

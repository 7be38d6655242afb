"""The part of the app that tells a run what to do: pause, save, stop, change its settings, be killed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual import on

from core.errors import UserError
from core.runs import changes
from tui import messages
from tui.controllers.runs import RunDesk

if TYPE_CHECKING:
    from core.runs.store import Run
    from tui.screens.run_settings import RunSettings


class ControlDesk(RunDesk):
    """Asks before a run is stopped, sends what is wanted, and tells what the worker answers."""

    @on(messages.ControlRequested)
    def _control(self, message: messages.ControlRequested) -> None:
        from tui.screens.dialogs import stop_dialog

        view = self.state.live_run
        if view is None:
            self.warn("No run is on", "There is nothing to control.")
        elif message.command == "stop":
            self.push_screen(stop_dialog(view), self._stop_chosen(view.run))
        else:
            self.bridge.control(view.run, message.command)

    def change_settings(self) -> None:
        """Ask for other settings of the run that is on."""
        view = self.state.live_run
        if view is None:
            return
        # The keys typed behind the one that asks are text: the screen is there before they are looked at.
        from tui.screens.run_settings import RunSettings

        try:
            config = view.run.config()
        except UserError as error:
            self.fail("The settings cannot be changed", error)
            return
        self.push_screen(RunSettings(view, config, lambda asked: self.bridge.control(view.run, "set", **asked)))

    def _stop_chosen(self, run: Run) -> Callable[[str | None], None]:
        """What becomes of an answer to a question about a stop of this run; the one shown may be another by then."""
        from tui.screens.dialogs import KILL, SIGNAL, STOP, STOP_NOW

        def chosen(answer: str | None) -> None:
            if answer == STOP:
                self.bridge.control(run, "stop")
            elif answer == STOP_NOW:
                self.bridge.control(run, "stop", now=True)
            elif answer == SIGNAL:
                self.bridge.signal(run)
            elif answer == KILL:
                self._ask_to_kill(run)

        return chosen

    def _ask_to_kill(self, run: Run) -> None:
        from tui.screens.dialogs import YES, kill_dialog

        view = self.state.live_run
        if view is None or view.run != run:
            self.warn("Nothing is killed", f"{run.id} has ended by itself.")
            return

        def answered(answer: str | None) -> None:
            if answer == YES:
                self.bridge.kill(run)

        self.push_screen(kill_dialog(view), answered)

    @on(messages.ControlAnswered)
    def _control_answered(self, message: messages.ControlAnswered) -> None:
        if message.command == "stop" and self._leave_line is not None:
            self.leave_by_choice()
            return
        if message.command == "set":
            self._settings_changed(message)
            return
        # The worker answers between two steps, when it has done what was asked; only a stop is yet to come.
        done = {
            "pause": "Paused",
            "resume": "Resumed",
            "checkpoint": "Checkpoint saved",
            "stop": "Stopping without a checkpoint" if message.args.get("now") else "Stopping after a checkpoint",
            "signal": "The signal is sent; the run stops after a checkpoint",
            "kill": "Killed",
        }
        self.notify(done.get(message.command, message.command), timeout=3, markup=False)

    def _settings_changed(self, message: messages.ControlAnswered) -> None:
        if (dialog := self._settings_dialog) is not None:
            dialog.accept(message.args)
        step = message.answer.get("step")
        after = f" after step {step}" if isinstance(step, int) and step else ""
        self.notify(f"Changed{after}: {changes.in_words(message.args)}", timeout=4, markup=False)

    @on(messages.ControlFailed)
    def _control_failed(self, message: messages.ControlFailed) -> None:
        from tui.screens.dialogs import unanswered_dialog

        self._leave_line = None
        view = self.state.live_run
        if message.command == "set" and (dialog := self._settings_dialog) is not None:
            dialog.refuse(message.error)
        elif message.command == "stop" and view is not None and view.run == message.run and view.has_process:
            self.push_screen(unanswered_dialog(message.error), self._stop_chosen(message.run))
        else:
            self.fail(f"{message.command.capitalize()} failed", message.error)

    @property
    def _settings_dialog(self) -> RunSettings | None:
        """The dialog that asks for settings, whatever lies over it; None where none is open."""
        from tui.screens.run_settings import RunSettings

        return next((screen for screen in self.screen_stack if isinstance(screen, RunSettings)), None)

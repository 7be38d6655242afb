"""Controller of the live run: pause, checkpoint, stop, settings and kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from core.runs.record.sentences import change_words
from tui.bridge import Bridge, Command
from tui.controllers.runs import Leaving, Runs
from tui.main_screen import Desktop

if TYPE_CHECKING:
    from core.errors import UserError
    from core.runs.record.store import Run
    from tui.screens.choice import ChoiceDialog
    from tui.screens.run_settings import RunSettings
    from tui.state import RunView


class RunControl:
    """Controller of a live run: confirms a stop, sends commands, and shows the worker's answers.

    Args:
        desktop: The dialogs and notices, and the state of the app.
        bridge: The threads that send commands.
        leaving: The controller of quitting, which may wait for a stop.
        runs: The controller of runs, which shows pending requests.
    """

    def __init__(self, desktop: Desktop, bridge: Bridge, leaving: Leaving, runs: Runs) -> None:
        self._desktop, self._state, self._clock = desktop, desktop.state, desktop.clock
        self._bridge, self._leaving, self._runs = bridge, leaving, runs

    def request(self, command: str) -> None:
        """Send a command to the worker, or withdraw it if it is pending; a stop is confirmed first.

        The request is shown at once, before the worker has received it.
        """
        from tui.screens.dialogs import quiet_dialog, stop_dialog

        view = self._state.live_run
        if view is None:
            self._desktop.warn("No live run", "There is nothing to control.")
        elif command == "stop":
            self._desktop.open(stop_dialog(view), self._stop_chosen(view.run))
        elif command == "resume" and view.is_quiet:
            self._confirm(view.run, "Nothing is changed", quiet_dialog, partial(self._lift_quiet_hours, view.run))
        elif command not in view.pending:
            self._ask(view.run, command)
        elif command == "resume":
            view.requests.take_back(command)
            self._ask(view.run, "pause")
        else:
            self._take_back(view.run, command)

    def _ask(self, run: Run, command: str, *, shown: bool = True, **args: Any) -> None:
        if shown and (view := self._view(run)) is not None:
            view.requests.ask(command)
        self._runs.show_lines()
        self.send(run, command, **args)

    def send(self, run: Run, command: str, **args: Any) -> None:
        """Send a command to the worker of a run, without showing it as pending."""
        self._bridge.control(Command(run, command, args), self._answered, self._refused)

    def _take_back(self, run: Run, command: str) -> None:
        if (view := self._view(run)) is not None:
            view.requests.take_back(command)
        self._runs.show_lines()
        self.send(run, "withdraw", what=command)

    def _view(self, run: Run) -> RunView | None:
        """The view of a run; None if it is not shown."""
        view = self._state.view
        return view if view is not None and view.run == run else None

    def change_settings(self, run: Run, settings: Mapping[str, Any]) -> None:
        """Change the settings of a run."""
        self.send(run, "set", **settings)

    def _lift_quiet_hours(self, run: Run) -> None:
        """Lift the quiet hours of a run."""
        self.change_settings(run, {"night.quiet_hours": None})

    def _stop_chosen(self, run: Run) -> Callable[[str | None], None]:
        """The handler of the stop dialog's answer for this run, which may not be the shown run by then."""
        from tui.screens.dialogs import KILL, SIGNAL, STOP, STOP_NOW, TAKE_BACK

        def chosen(answer: str | None) -> None:
            if answer == STOP:
                self._ask(run, "stop")
            elif answer == STOP_NOW:
                self._ask_to_stop_now(run)
            elif answer == TAKE_BACK:
                self._take_back(run, "stop")
            elif answer == SIGNAL:
                self._bridge.end(Command(run, "signal"), self._answered)
            elif answer == KILL:
                self._ask_to_kill(run)

        return chosen

    def _ask_to_stop_now(self, run: Run) -> None:
        """Stop a run without a checkpoint; ask once more if steps would be lost."""
        from tui.screens.dialogs import stop_now_dialog

        def question(view: RunView) -> ChoiceDialog | None:
            return stop_now_dialog(view) if view.step > (view.saved_step or 0) else None

        self._confirm(run, "Nothing is stopped", question, lambda: self._ask(run, "stop", now=True))

    def _ask_to_kill(self, run: Run) -> None:
        from tui.screens.dialogs import kill_dialog

        def kill() -> None:
            self._bridge.end(Command(run, "kill"), self._answered)

        self._confirm(run, "Nothing is killed", kill_dialog, kill)

    def _confirm(
        self, run: Run, refusal: str, question: Callable[[RunView], ChoiceDialog | None], act: Callable[[], None]
    ) -> None:
        """Act on a run that is still live, after a yes to the question if there is one."""
        from tui.screens.dialogs import YES

        view = self._state.live_run
        if view is None or view.run != run:
            self._desktop.warn(refusal, f"{run.id} has already ended.")
        elif (dialog := question(view)) is None:
            act()
        else:

            def answered(answer: str | None) -> None:
                if answer == YES:
                    act()

            self._desktop.open(dialog, answered)

    def _answered(self, command: Command, answer: Mapping[str, Any]) -> None:
        """Show the result of a command; quit after a stop that was requested while quitting."""
        if command.name == "stop" and self._leaving.awaits_stop:
            self._leaving.leave_by_choice()
            return
        if command.name == "set":
            self._settings_changed(command.args, answer)
            return
        was_asked = self._settle(command)
        if command.name == "withdraw" and not answer.get("withdrawn"):
            self._came_too_late(command)
        # No text for a stop, which shows in the run's state, and for withdrawn requests.
        done = {
            "pause": "Paused",
            "resume": "Resumed",
            "park": "Giving the device back",
            "checkpoint": "Checkpoint saved",
            "skip_evaluation": "The evaluation is skipped",
            "signal": "The signal is sent; the run stops after a checkpoint",
            "kill": "Killed",
        }
        if (was_asked or command.name in ("signal", "kill")) and (text := done.get(command.name)):
            self._desktop.tell(text, seconds=3)

    def _settle(self, command: Command) -> bool:
        """Settle an answered request; returns True if it was pending and not withdrawn."""
        view = self._view(command.run)
        if view is None:
            return True
        now, requests = self._clock(), view.requests
        was_asked = requests.answered(command.name, now)
        if command.name == "withdraw":
            requests.taken_back(str(command.args.get("what")), now)
        self._runs.show_lines()
        return was_asked

    def _came_too_late(self, command: Command) -> None:
        """Handle a withdrawal that came too late: end the pause; other requests are done."""
        if command.args.get("what") == "pause":
            self._ask(command.run, "resume", shown=False)

    def _settings_changed(self, args: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        if (dialog := self._settings_dialog) is not None:
            dialog.accept(args)
        step = answer.get("step")
        after = f" after step {step}" if isinstance(step, int) and step else ""
        self._desktop.tell(f"Changed{after}: {change_words(args)}")

    def _refused(self, command: Command, error: UserError) -> None:
        """Show the worker's refusal; if it does not answer a stop, offer other ways to stop it."""
        from core.runs.control.client import PendingError, WithdrawnError
        from tui.screens.dialogs import unanswered_dialog

        view = self._view(command.run)
        if isinstance(error, PendingError):
            self._settle(command)
            return
        self._leaving.stay()
        if view is not None:
            view.requests.refused(command.name)
            view.requests.taken_back(str(command.args.get("what")), self._clock())
            self._runs.show_lines()
        if isinstance(error, WithdrawnError):
            return
        if command.name == "withdraw" and command.args.get("what") == "pause":
            # Workers of earlier versions lack the command; resume the run instead.
            self._came_too_late(command)
            return
        view = self._state.live_run
        if command.name == "set" and (dialog := self._settings_dialog) is not None:
            dialog.refuse(error)
        elif command.name == "stop" and view is not None and view.run == command.run and view.has_process:
            self._desktop.open(unanswered_dialog(error), self._stop_chosen(command.run))
        else:
            self._desktop.fail(f"Could not {command.name.replace('_', ' ')}", error)

    @property
    def _settings_dialog(self) -> RunSettings | None:
        """The open settings dialog, even if it is covered; None if there is none."""
        from tui.screens.run_settings import RunSettings

        return self._desktop.find_screen(RunSettings)

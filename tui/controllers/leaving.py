"""Controller of quitting: dialogs about unsaved edits and a live run, and the closing line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.runs.record.state import in_words
from tui.controllers.desktop import Desktop
from tui.controllers.returning import Returning
from tui.draft_keeper import DraftKeeper

if TYPE_CHECKING:
    from core.runs.record.store import Run
    from tui.screens.choice import ChoiceDialog


class Leaving:
    """Controller of quitting the app.

    Args:
        desktop: The panes and dialogs, and the state of the app.
        drafts: The drafts of unsaved edits.
        returning: The controller of the session.
        stop: Asks a run to stop after a checkpoint.
    """

    def __init__(
        self, desktop: Desktop, drafts: DraftKeeper, returning: Returning, stop: Callable[[Run], None]
    ) -> None:
        self._desktop, self._state, self._drafts, self._returning = desktop, desktop.state, drafts, returning
        self._stop = stop
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
            text = "A run is being started. The app leaves as soon as its worker is there."
            self._desktop.tell(text, seconds=8)
            return
        self._drafts.look()
        kept = self._drafts.new_config
        self._returning.leave()
        self._drafts.close(discards=self._discards)
        lines = [self.line() or ""]
        if kept:
            lines.append(f"The configuration ({kept}) is kept, without a file. Come back to it with: localtune-tui")
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
            return f"Run {run.id} goes on ({state}). Come back with: localtune-tui watch {run.id}"
        if view.state.refused:
            return f"Run {run.id} is finished, and eval.gate refuses its result: {view.state.refused}"
        outputs = run.adapter_path if state == "finished" else run.path
        return f"Run {run.id} {in_words(state)}: {outputs}"

    def run_started(self, run: Run) -> None:
        """Quit if the app was waiting for this run."""
        if self._awaits_start:
            self._line = f"Run {run.id} has started. Come back with: localtune-tui watch {run.id}"
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
        """Quit; ask first about unsaved edits, and otherwise about a live run."""
        from tui.screens.dialogs import quit_dialog, starting_dialog, unsaved_dialog

        view, top = self._state.live_run, self._desktop.top
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
        # A repeated request while the dialog about the run is open means its least drastic answer.
        if has_edits and top is not self._run_question:
            self._edits_question = unsaved_dialog(self._state.file_name, view)
            self._desktop.open(self._edits_question, self._unsaved_answered)
        elif view is None or top is self._run_question:
            self.leave_by_choice()
        else:
            self._run_question = quit_dialog(view)
            self._desktop.open(self._run_question, self._quit_answered)

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

"""Undo and redo in the config pane; what is undone is said, and shown."""

from __future__ import annotations

from tui.panes.config.files import ConfigFiles
from tui.panes.config.history import Step


class ConfigUndo(ConfigFiles):
    """A pane whose edits can be undone: of fields, presets, templates, columns, in the editor, and by imports."""

    def go_to_option(self, name: str) -> None:
        """Put the cursor on an option."""
        raise NotImplementedError

    def action_undo(self) -> None:
        """Bring back what was before the last edit."""
        self._settle()
        step = self.history.undo()
        self._show_step(step, step.tell_undone() if step is not None else "There is nothing to undo.")

    def action_redo(self) -> None:
        """Make the edit again that was undone last."""
        self._settle()
        step = self.history.redo()
        self._show_step(step, step.tell_redone() if step is not None else "There is nothing to do again.")

    def _settle(self) -> None:
        """Take down what has just been typed, so that it is an edit of its own."""
        self.commit_open()
        self.history.record(self.model)

    def _show_step(self, step: Step | None, sentence: str) -> None:
        if step is None:
            self.say(sentence)
            return
        self.model = self.history.present.model
        self.show_document()
        if len(names := step.changed) == 1:
            self.go_to_option(names[0])
        self.say(sentence)

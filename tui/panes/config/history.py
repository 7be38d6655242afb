"""The edit history of a configuration: undo and redo, exact to the byte."""

from __future__ import annotations

from dataclasses import dataclass

from core.config.compare import holding_values
from core.config.document import ConfigDocument
from core.config.schema import options
from core.text import one_line
from tui.panes.config.model import ConfigModel
from tui.widgets.forms.option_field import format_value

#: Maximum number of edits kept.
LIMIT = 500
_VALUE_LENGTH = 40


@dataclass(frozen=True)
class Moment:
    """A snapshot of a configuration with its text."""

    model: ConfigModel
    text: str


@dataclass(frozen=True)
class Step:
    """One edit: the snapshots before and after it, and its label; empty where the difference describes it."""

    before: Moment
    after: Moment
    label: str

    @property
    def changed(self) -> list[str]:
        """The options whose values differ, ``section.key``."""
        old, new = _values(self.before), _values(self.after)
        return [option.name for option in options() if old.get(option.name) != new.get(option.name)]

    def tell_undone(self) -> str:
        """A message about the edit after its undo."""
        return self._tell(self.after, self.before, "Undone")

    def tell_redone(self) -> str:
        """A message about the edit after its redo."""
        return self._tell(self.before, self.after, "Done again")

    def _tell(self, left: Moment, present: Moment, verb: str) -> str:
        if self.label:
            return f"{verb}: {self.label}."
        names = self.changed
        if len(names) != 1:
            return f"{verb}: {len(names)} options." if names else f"{verb}: the text; no option has another value."
        (name,) = names
        return f"{verb}: {name} is {_written(present, name)} again (was {_written(left, name)})."


class EditHistory:
    """The history of edits; :meth:`record` is called after each.

    Args:
        model: The configuration as it is.
    """

    def __init__(self, model: ConfigModel) -> None:
        self.present = Moment(model, model.document.dumps())
        self._done: list[Step] = []
        self._undone: list[Step] = []

    def begin(self, model: ConfigModel) -> None:
        """Clear the history: nothing before this can be undone."""
        self.present = Moment(model, model.document.dumps())
        self._done.clear()
        self._undone.clear()

    def record(self, model: ConfigModel, label: str = "") -> bool:
        """Record an edit; nothing happens where nothing has changed.

        Args:
            model: The present configuration; another object than before where another one has been opened.
            label: The edit in a few words.
        """
        now = Moment(model, model.document.dumps())
        if now == self.present:
            return False
        self._done.append(Step(self.present, now, one_line(label, 120)))
        del self._done[:-LIMIT]
        self._undone.clear()
        self.present = now
        return True

    def undo(self) -> Step | None:
        """Undo the last edit; None where there is none."""
        if not self._done:
            return None
        step = self._done.pop()
        self._undone.append(step)
        self._bring_back(step.before)
        return step

    @property
    def former(self) -> ConfigModel | None:
        """The configuration that was there before the present one; None for none."""
        models = (step.before.model for step in reversed(self._done))
        return next((model for model in models if model is not self.present.model), None)

    def leave(self) -> Step | None:
        """Go back to the configuration before the present one, which keeps its text; None where there is none."""
        if (former := self.former) is None:
            return None
        while self.present.model is not former:
            step = self._done.pop()
            self._undone.append(step)
            self.present = step.before
        self.revert()
        return step

    def redo(self) -> Step | None:
        """Redo the edit undone last; None where there is none."""
        if not self._undone:
            return None
        step = self._undone.pop()
        self._done.append(step)
        self._bring_back(step.after)
        return step

    def revert(self) -> None:
        """Reset the configuration to the text after the last edit: later changes are dropped."""
        self._bring_back(self.present)

    def _bring_back(self, moment: Moment) -> None:
        moment.model.document.rewrite(moment.text)
        self.present = moment


def _values(moment: Moment) -> dict[str, object]:
    return holding_values(ConfigDocument(moment.text, moment.model.document.path))


def _written(moment: Moment, name: str) -> str:
    value = ConfigDocument(moment.text).get(name)
    if value is None:
        default = next(option.default for option in options() if option.name == name)
        return f"{format_value(default)} by default" if default is not None else "not set"
    return one_line(format_value(value), _VALUE_LENGTH)

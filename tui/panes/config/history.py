"""The edits of a configuration, so that they can be undone and redone to the byte."""

from __future__ import annotations

from dataclasses import dataclass

from core.config.compare import holding_values
from core.config.document import ConfigDocument
from core.config.schema import options
from core.text import one_line
from tui.panes.config.model import ConfigModel
from tui.widgets.forms.option_field import format_value

#: Edits that are remembered.
LIMIT = 500
_VALUE_LENGTH = 40


@dataclass(frozen=True)
class Moment:
    """A configuration with a text that it had."""

    model: ConfigModel
    text: str


@dataclass(frozen=True)
class Step:
    """One edit: what was before and after it, and what it was; empty where that is told from the difference."""

    before: Moment
    after: Moment
    label: str

    @property
    def changed(self) -> list[str]:
        """The options that have another value, ``section.key``."""
        old, new = _values(self.before), _values(self.after)
        return [option.name for option in options() if old.get(option.name) != new.get(option.name)]

    def tell_undone(self) -> str:
        """What has been undone, in a sentence."""
        return self._tell(self.after, self.before, "Undone")

    def tell_redone(self) -> str:
        """What has been done again, in a sentence."""
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
    """What was before each edit; :meth:`record` is called after one.

    Args:
        model: The configuration as it is.
    """

    def __init__(self, model: ConfigModel) -> None:
        self.present = Moment(model, model.document.dumps())
        self._done: list[Step] = []
        self._undone: list[Step] = []

    def begin(self, model: ConfigModel) -> None:
        """Begin anew: nothing before this can be undone."""
        self.present = Moment(model, model.document.dumps())
        self._done.clear()
        self._undone.clear()

    def record(self, model: ConfigModel, label: str = "") -> bool:
        """Take down that something has been edited; nothing happens where nothing has.

        Args:
            model: The configuration as it is now; another one than before where another has been opened.
            label: What was done, in a few words.
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
        """Bring back what was before the last edit; None where there is none."""
        if not self._done:
            return None
        step = self._done.pop()
        self._undone.append(step)
        self._bring_back(step.before)
        return step

    def redo(self) -> Step | None:
        """Make the edit again that was undone last; None where there is none."""
        if not self._undone:
            return None
        step = self._undone.pop()
        self._done.append(step)
        self._bring_back(step.after)
        return step

    def revert(self) -> None:
        """Give the present configuration the text that it had after the last edit: what was begun since is gone."""
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

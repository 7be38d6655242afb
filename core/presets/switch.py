"""Going from one preset to another, without losing what the user wrote; which preset is in force is noted in the file.

The note is a comment in the head of the file, ``# preset: 24gb-7b``: it is saved, copied and undone with the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from core.config.document import ConfigDocument
from core.config.schema import find_option, options
from core.presets.library import TOGETHER, Preset, presets

_NOTE = re.compile(r"#\s*preset:\s*(\S+)\s*")


@dataclass(frozen=True)
class Change:
    """An option that a preset gives another value.

    Args:
        option: ``section.key``.
        before: What the file says; None where it says nothing.
        after: What it will say; None where the default will hold.
    """

    option: str
    before: Any
    after: Any

    @property
    def is_felt(self) -> bool:
        """Whether another value holds afterwards; writing a default down changes nothing."""
        return bool(self._holds(self.before) != self._holds(self.after))

    def _holds(self, value: Any) -> Any:
        option = find_option(self.option)
        return option.default if value is None and option is not None else value


@dataclass(frozen=True)
class Switch:
    """What taking a preset does to a configuration.

    Args:
        preset: The preset.
        changes: The options that are written or removed, in the order of the file.
        kept: Options that the user wrote and that keep their value; ``after`` is what the preset would have said.
    """

    preset: Preset
    changes: tuple[Change, ...]
    kept: tuple[Change, ...]

    @property
    def felt(self) -> tuple[Change, ...]:
        """The changes after which another value holds."""
        return tuple(change for change in self.changes if change.is_felt)


def preset_in(document: ConfigDocument) -> Preset | None:
    """The preset that the head of a configuration names; None where it names none that there is."""
    place = _find_note(document.dumps().split("\n"))
    return presets().get(place[1]) if place is not None else None


def note_preset(text: str, name: str) -> str:
    """A configuration's text with the name of its preset in the head; the rest stays to the byte."""
    lines = text.split("\n")
    place = _find_note(lines)
    if place is not None:
        lines[place[0]] = note_line(name)
    else:
        # Editors look for the schema of a file on its first line.
        lines.insert(1 if lines[0].startswith("#:schema") else 0, note_line(name))
    return "\n".join(lines)


def note_line(name: str) -> str:
    """The comment that names a preset."""
    return f"# preset: {name}"


def plan_switch(
    document: ConfigDocument, preset: Preset, *, max_length: int | None = None, keep_own: bool = True
) -> Switch:
    """What taking a preset would do; nothing is changed.

    Model, data and everything else that no preset says anything about stay. A value counts as the user's own where it
    is written and is not that of the preset in force.

    Args:
        document: The configuration.
        preset: The preset to take.
        max_length: ``train.max_length`` instead of the preset's.
        keep_own: Keep the user's own values, and leave options alone that go together with one of them.
    """
    new = dict(preset.values) | ({} if max_length is None else {"train.max_length": max_length})
    present = preset_in(document)
    old = present.values if present is not None else {}
    written = {option.name: value for option in options() if (value := document.get(option.name)) is not None}
    own = {name for name, value in written.items() if name not in old or old[name] != value}
    alone: set[str] = set(own) if keep_own else set()
    gone = {name for name in written if name in old and name not in own and name not in new}
    for pair in TOGETHER:
        if keep_own and own.intersection(pair):
            alone.update(pair)
        elif not new.keys().isdisjoint(pair):
            gone.update(name for name in pair if name in written and name not in new)
    changes, kept = [], []
    for option in options():
        name, before = option.name, written.get(option.name)
        if name in alone:
            if name in new and Change(name, before, new[name]).is_felt:
                kept.append(Change(name, before, new[name]))
        elif name in new:
            if before is None or before != new[name]:
                changes.append(Change(name, before, new[name]))
        elif name in gone:
            changes.append(Change(name, before, None))
    return Switch(preset, tuple(changes), tuple(kept))


def apply_switch(document: ConfigDocument, switch: Switch) -> None:
    """Make the changes, and note the preset in the head of the file.

    Raises:
        UserError: If the file uses the name of a section for something else.
    """
    before = document.dumps()
    try:
        document.rewrite(note_preset(before, switch.preset.name))
        for change in switch.changes:
            document.set(change.option, change.after)
    except BaseException:
        document.rewrite(before)
        raise


def _find_note(lines: list[str]) -> tuple[int, str] | None:
    """Line and name of the note; only comments before the first section or option are looked at."""
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            return None
        if (match := _NOTE.fullmatch(line)) is not None:
            return number, match[1]
    return None

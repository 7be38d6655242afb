"""Switching between presets without losing the user's own values; the file itself records its preset.

The record is a comment at the top of the file, ``# preset: 24gb-7b``: it is saved, copied and undone with the rest. A
second comment, ``# chosen: preset 24gb-7b, data.eval_share = 0.1``, records the app's choice for a new configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomli
import tomlkit

from core.config.document import ConfigDocument, as_item
from core.config.schema import find_option, options
from core.presets.library import TOGETHER, Preset, presets

_NOTE = re.compile(r"#\s*preset:\s*(\S+)\s*")
_CHOSEN = re.compile(r"#\s*chosen:\s*preset\s+([^\s,]+)\s*(?:,(.*))?")
#: Written by :mod:`core.importers`.
_IMPORTED = re.compile(r"# Imported from (.+), a configuration of [^,]+\.")


@dataclass(frozen=True)
class Chosen:
    """Choice for a new configuration, as the comment at its top says; the user may have changed it since.

    Args:
        preset: The name of the preset.
        values: The values beside the preset's, ``section.key`` to value.
    """

    preset: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """An option whose value a preset changes.

    Args:
        option: ``section.key``.
        before: The value in the file; None where it is not written.
        after: The value that will be written; None where the default will apply.
    """

    option: str
    before: Any
    after: Any

    @property
    def is_felt(self) -> bool:
        """True if the effective value changes; writing out a default changes nothing."""
        return bool(self._holds(self.before) != self._holds(self.after))

    def _holds(self, value: Any) -> Any:
        option = find_option(self.option)
        return option.default if value is None and option is not None else value


@dataclass(frozen=True)
class Switch:
    """The changes that switching to a preset makes in a configuration.

    Args:
        preset: The preset.
        changes: The options that are written or removed, in the order of the file.
        kept: Options that the user wrote and that keep their value; ``after`` is the preset's value.
    """

    preset: Preset
    changes: tuple[Change, ...]
    kept: tuple[Change, ...]

    @property
    def felt(self) -> tuple[Change, ...]:
        """The changes that alter an effective value."""
        return tuple(change for change in self.changes if change.is_felt)


def preset_in(document: ConfigDocument) -> Preset | None:
    """The preset that the top of a configuration names; None where it names no known preset."""
    place = _find_note(document.dumps().split("\n"), _NOTE)
    return presets().get(place[1][1]) if place is not None else None


def note_preset(text: str, name: str) -> str:
    """A configuration's text with the name of its preset at the top; the rest stays to the byte."""
    return _noted(text, _NOTE, note_line(name))


def chosen_in(document: ConfigDocument) -> Chosen | None:
    """Choice for a new configuration, by the comment at its top; None where there is no such comment."""
    place = _find_note(document.dumps().split("\n"), _CHOSEN)
    if place is None:
        return None
    try:
        sections = tomli.loads(f"x = {{{place[1][2] or ''}}}")["x"]
    except (ValueError, RecursionError):
        return None
    values = {
        f"{section}.{key}": value
        for section, keys in sections.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
    return Chosen(place[1][1], values)


def note_chosen(text: str, chosen: Chosen) -> str:
    """A configuration's text with the choice as a comment at the top; the rest stays to the byte."""
    values = [f"{name} = {tomlkit.item(as_item(value)).as_string()}" for name, value in chosen.values.items()]
    return _noted(text, _CHOSEN, f"# chosen: {', '.join([f'preset {chosen.preset}', *values])}")


def note_line(name: str) -> str:
    """The comment that names a preset."""
    return f"# preset: {name}"


def plan_switch(
    document: ConfigDocument, preset: Preset, *, max_length: int | None = None, keep_own: bool = True
) -> Switch:
    """The changes that a preset would make; nothing is changed yet.

    Model, data and everything else that the preset does not set stay. A value counts as the user's own if it is written
    and differs from the current preset's.

    Args:
        document: The configuration.
        preset: The preset to take.
        max_length: ``train.max_length`` instead of the preset's.
        keep_own: Keep the user's own values, and leave alone their partners in :data:`TOGETHER`.
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
    """Make the changes, and record the preset at the top of the file.

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


def imported_from(document: ConfigDocument) -> str:
    """The name of another tool's file that a configuration was imported from, by the comment at its top; else empty."""
    place = _find_note(document.dumps().split("\n"), _IMPORTED)
    return place[1][1] if place is not None else ""


def _noted(text: str, pattern: re.Pattern[str], note: str) -> str:
    """A text with a note in the place of the one before, or at the top, below another note."""
    lines = text.split("\n")
    place = _find_note(lines, pattern)
    if place is not None:
        lines[place[0]] = note
    else:
        # Editors look for the schema of a file on its first line.
        top = 1 if lines[0].startswith("#:schema") else 0
        is_below = pattern is _CHOSEN and any(_NOTE.fullmatch(line) for line in lines[top : top + 1])
        lines.insert(top + is_below, note)
    return "\n".join(lines)


def _find_note(lines: list[str], pattern: re.Pattern[str]) -> tuple[int, re.Match[str]] | None:
    """Line and match of a note; only comments before the first section or option are looked at."""
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            return None
        if (match := pattern.fullmatch(line)) is not None:
            return number, match
    return None

"""The translation of one file: the options set so far, and the result for each key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from core.config.document import describe_type
from core.config.schema import Config, find_option
from core.errors import UserError
from core.importers.places import Places
from core.importers.redact import cleaned, holds_secret, redact, redact_name, shown
from core.importers.rules import Choice, Copy, Kind, is_one_of
from core.text import one_line
from core.yaml.file import YamlFile

_WANTED: dict[Kind, str] = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "text": "a text",
    "texts": "a text or a list of texts",
}
_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}


@dataclass(frozen=True)
class Entry:
    """The result for a key.

    Args:
        key: Its name in the file; a default of the tool is listed too, without a value.
        value: The value in the file, secrets replaced; None where there is none.
        to: Our options, separated by commas; None where there is none.
        reason: A sentence; may be empty where the value was copied.
    """

    key: str
    value: Any
    to: str | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The entry as the command prints it."""
        return {"key": self.key, "value": self.value, "to": self.to, "reason": self.reason}


@dataclass(frozen=True)
class Unknown:
    """A key that the tool does not have.

    Args:
        key: Its name.
        line: Its line, counted from 1.
        guess: The key that was most likely meant; empty if none is similar.
    """

    key: str
    line: int | None
    guess: str


@dataclass
class Setting:
    """A value of the new configuration, with the reason for a decision; no comment where it was copied."""

    value: Any
    comment: str = ""


@dataclass
class Translation:
    """The translation of one file.

    Args:
        title: Name of the tool whose file it is.
        source: The file.
        places: The resolution of its relative paths.
        values: Its keys, those of the tool's sections as ``section.key``; keys without a value left out.
    """

    title: str
    source: YamlFile
    places: Places
    values: dict[str, Any]
    settings: dict[str, Setting] = field(default_factory=dict)
    carried: list[Entry] = field(default_factory=list)
    changed: list[Entry] = field(default_factory=list)
    unsupported: list[Entry] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    inner: dict[str, Any] = field(default_factory=dict)
    """Values inside a key's value, as ``datasets[1].path``, for messages about them."""
    counted: dict[tuple[str, ...], list[int] | None] = field(default_factory=dict)
    """Counted rows of the entries of ``data.train``, by their names."""
    _done: set[str] = field(default_factory=set)
    _as_text: set[str] = field(default_factory=set)

    # Reading values of the file.

    def has(self, key: str) -> bool:
        """Whether the file gives the key a value."""
        return key in self.values

    def refuse(self, key: str, what: str, hint: str = "Fix it.") -> NoReturn:
        """End the import with an error about a key.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.source.place(key)}: {redact_name(key)} {what}.", hint)

    def get(self, key: str, kind: Kind) -> Any:
        """The value of a key, converted to a kind; None where there is none.

        Numbers and booleans written as strings are converted: YAML itself reads ``2e-4``, which has no point, as a
        string.

        Raises:
            UserError: If it is of another kind.
        """
        if key not in self.values:
            return None
        value = self.values[key]
        found = _as_kind(value, kind)
        if found is None:
            self.refuse(key, f"must be {_WANTED[kind]}, not {shown(key, value)}")
        if isinstance(value, str) and kind in ("integer", "number", "boolean"):
            self._as_text.add(key)
        return found

    def integer(self, key: str) -> int | None:
        """The integer value of a key; see :meth:`get`."""
        found: int | None = self.get(key, "integer")
        return found

    def number(self, key: str) -> float | None:
        """The number value of a key; see :meth:`get`."""
        found: float | None = self.get(key, "number")
        return found

    def boolean(self, key: str) -> bool | None:
        """The boolean value of a key; see :meth:`get`."""
        found: bool | None = self.get(key, "boolean")
        return found

    def text(self, key: str) -> str | None:
        """The string value of a key; see :meth:`get`."""
        found: str | None = self.get(key, "text")
        return found

    def texts(self, key: str) -> list[str] | None:
        """The list of strings of a key; see :meth:`get`. A string with commas is split."""
        found: list[str] | None = self.get(key, "texts")
        return found

    # Recording the result for each key; the first record counts.

    def put(self, option: str, value: Any, comment: str = "") -> str | None:
        """Set an option; a comment marks it as a decision.

        Returns:
            None, or the reason why the option cannot have the value; it then keeps its default.
        """
        declared = find_option(option)
        assert declared is not None, option  # noqa: S101 - the tables are checked by a test
        if any(holds_secret(text) for text in _texts_in(value)):
            return "It looks like a secret, and none is written to a configuration."
        section, _, name = option.partition(".")
        table = {section: {name: value}}
        table.setdefault("data", {}).setdefault("train", "rows")
        try:
            Config.model_validate(table)
        except ValidationError:
            return f"{option} must be {describe_type(declared)}; it keeps its default."
        self.settings[option] = Setting(value, cleaned(comment))
        return None

    def carry(self, key: str, option: str | None, value: Any = None, reason: str = "") -> None:
        """Record a copied key, and set its option if a value is given."""
        if key in self._done:
            return
        problem = self.put(option, value) if option and value is not None else None
        if problem:
            self._note(self.unsupported, key, None, problem)
        else:
            if not reason and key in self._as_text:
                reason = "YAML reads this as text; it is taken for what it stands for."
            self._note(self.carried, key, option, reason)

    def change(self, key: str, option: str, value: Any, reason: str) -> None:
        """Record a key whose meaning differs slightly here, and set its option with a comment."""
        if key in self._done:
            return
        problem = self.put(option, value, reason)
        if problem:
            self._note(self.unsupported, key, None, problem)
        else:
            self._note(self.changed, key, option, reason)

    def note_change(self, key: str, to: str, reason: str) -> None:
        """Record a key for which several options were set."""
        self._note(self.changed, key, to, reason)

    def drop(self, key: str, reason: str, option: str | None = None, value: Any = None) -> None:
        """Record a key that is not supported; an option may be set instead."""
        if key in self._done:
            return
        is_set = option is not None and value is not None and self.put(option, value, reason) is None
        self._note(self.unsupported, key, option if is_set else None, reason)

    def note_unknown(self, key: str, known: Iterable[str]) -> None:
        """Record a key that the tool does not have."""
        near = difflib.get_close_matches(key[:60], list(known), n=1, cutoff=0.72)
        guess = near[0] if near else ""
        meant = f" Did you mean {guess}?" if guess else ""
        self.unknown.append(Unknown(redact_name(key), self.source.lines.get(key), guess))
        self._note(self.unsupported, key, None, f"Unknown: {self.title} has no such key.{meant}")

    def note_empty(self, key: str) -> None:
        """Record a key without a value: the default applies, which may have been decided already."""
        self._note(self.carried, key, None, "Empty: the default holds.")

    def is_done(self, key: str) -> bool:
        """Whether a key has been recorded."""
        return key in self._done

    def _note(self, where: list[Entry], key: str, to: str | None, reason: str) -> None:
        if key in self._done:
            return
        self._done.add(key)
        value = self.values[key] if key in self.values else self.inner.get(key)
        where.append(Entry(redact_name(key), redact(key, value), to, cleaned(reason)))

    # Applying rules for single keys.

    def copy(self, key: str, rule: Copy) -> None:
        """Apply a :class:`Copy`."""
        if self.is_done(key):
            return
        raw = self.values.get(key)
        if raw is None or is_one_of(raw, rule.unset):
            if self._differs(rule):
                self.change(key, rule.option, rule.absent, rule.why)
            elif raw is not None:
                self.carry(key, None, reason="It says nothing here either.")
        elif isinstance(raw, str) and raw in rule.also:
            self.drop(key, rule.also[raw])
        else:
            self.carry(key, rule.option, self.get(key, rule.kind))

    def choose(self, key: str, rule: Choice) -> None:
        """Apply a :class:`Choice`."""
        if self.is_done(key):
            return
        if not self.has(key):
            if self._differs(rule):
                self.change(key, rule.option, rule.absent, rule.why)
            return
        raw = self.values[key]
        if not isinstance(raw, (str, bool, int, float)):
            self.refuse(key, f"must be a name, not {shown(key, raw)}")
        word = raw.strip().lower() if isinstance(raw, str) else raw
        if (found := _look_up(rule.same, word)) is not None:
            self.carry(key, rule.option, found[0], "" if found[0] is not None else "As it is here.")
        elif (found := _look_up(rule.near, word)) is not None:
            ours, reason = found[0]
            self.change(key, rule.option, ours, reason)
        else:
            ours, reason = rule.otherwise
            self.drop(key, reason, rule.option, ours)

    def _differs(self, rule: Copy | Choice) -> bool:
        """Whether the tool's default must be written out, because ours differs."""
        declared = find_option(rule.option)
        ours = declared.default if declared is not None else None
        return rule.absent is not None and rule.absent != ours and rule.option not in self.settings


def _look_up(table: Mapping[Any, Any], word: Any) -> tuple[Any] | None:
    return next(((ours,) for theirs, ours in table.items() if is_one_of(word, (theirs,))), None)


def _texts_in(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return (str(item) for item in value.values())
    return (str(item) for item in value) if isinstance(value, list) else ()


def _as_kind(value: Any, kind: Kind) -> Any:
    """A value converted to a kind; None where that is impossible."""
    if kind == "boolean":
        word = value.strip().lower() if isinstance(value, str) else ""
        return value if isinstance(value, bool) else True if word in _TRUE else False if word in _FALSE else None
    if kind == "text":
        plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        return (str(value).strip() or None) if plain else None
    if kind == "texts":
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, (str, int)) for part in parts):
            return None
        return [str(part).strip() for part in parts if str(part).strip()]
    number = _as_number(value)
    if number is None or kind == "number":
        return number
    return int(number) if number == int(number) else None


def _as_number(value: Any) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def file_name(path: Path) -> str:
    """The name of a file, for a comment."""
    return cleaned(one_line(path.name, 80))

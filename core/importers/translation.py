"""Translation of a file of another tool: the options set so far, and a report entry per key."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import ValidationError

from core.config.document import describe_type
from core.config.schema import Config, find_option
from core.errors import UserError
from core.hub.selection import is_data_name
from core.importers.redact import cleaned, holds_secret, redact, redact_name, shown
from core.text import one_line
from core.yaml.file import YamlFile

Kind = Literal["integer", "number", "boolean", "text", "texts"]

#: Values that turn a key off.
OFF: tuple[Any, ...] = (False, 0, "", "none", "no", [], {})
#: Reasons for carried keys that set no option.
SAME, EMPTY = "It asks for our behavior, or has no effect.", "Empty: the default applies."

_WANTED: dict[Kind, str] = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "text": "a text",
    "texts": "a text or a list of texts",
}
_TRUE, _FALSE = {"true", "yes", "on", "1", "1.0"}, {"false", "no", "off", "0", "0.0"}
#: Most parent directories considered as the tool's working directory.
_UPWARD = 5
#: Longest name taken for a path.
_LONGEST = 400


@dataclass(frozen=True)
class Places:
    """Resolution of relative paths in another tool's file.

    Args:
        base: Base directory of the paths.
        home: Directory of the new configuration; None if not known yet.
    """

    base: Path
    home: Path | None = None

    @classmethod
    def find(cls, file: Path, names: Iterable[Any], home: Path | None = None) -> Places:
        """Guess the tool's working directory, which the file does not record.

        Candidates are the current directory, the directory of the file, and its parents. The first with the most named
        paths wins.
        """
        start = Path(os.path.abspath(file)).parent
        candidates = list(dict.fromkeys([Path.cwd(), start, *list(start.parents)[:_UPWARD]]))
        texts = dict.fromkeys(name for name in names if isinstance(name, str) and 0 < len(name) < _LONGEST)
        wanted = [name for name in texts if "://" not in name]
        wanted = [name for name in wanted if not os.path.isabs(os.path.expanduser(name))]
        best = max(candidates, key=lambda base: sum(_exists(base / name) for name in wanted))
        return cls(best, Path(os.path.abspath(home)) if home is not None else None)

    def locate(self, name: str) -> Path:
        """Absolute path of a name."""
        return Path(os.path.normpath(self.base / os.path.expanduser(name)))

    def exists(self, name: str) -> bool:
        """True if a path of the file exists."""
        return _exists(self.locate(name))

    def is_local(self, name: str) -> bool:
        """True if a name is a path on this machine, not on a Hub or in a store."""
        if "://" in name:
            return False
        plain = name.startswith(("/", "./", "../", "~")) or name in (".", "..") or is_data_name(name)
        return plain or self.exists(name)

    def write(self, path: Path, mark: str = "") -> str:
        """A path for our configuration: relative below its own directory, else absolute.

        Args:
            path: An absolute path.
            mark: Suffix of the path, such as ``#name``.
        """
        if self.home is not None and path.is_relative_to(self.home) and path != self.home:
            return f"{path.relative_to(self.home)}{mark}"
        return f"{path}{mark}"


@dataclass(frozen=True)
class Entry:
    """Report entry of a key.

    Args:
        key: Its name in the file, or a key that was not given and has another default here.
        value: Its value in the file, with secrets replaced; None without a value.
        to: Our options, separated by commas; None without any.
        reason: A sentence; may be empty if the value was copied.
    """

    key: str
    value: Any
    to: str | None
    reason: str


@dataclass(frozen=True)
class Unknown:
    """A key that the tool does not have.

    Args:
        key: Its name.
        line: Its line, from 1.
        guess: The most similar key of the tool; empty if none is similar.
    """

    key: str
    line: int | None
    guess: str


@dataclass
class Setting:
    """A value of the new configuration, with a comment if it was decided rather than copied."""

    value: Any
    comment: str = ""


@dataclass
class Translation:
    """The translation of one file.

    Args:
        title: Name of the tool.
        source: The file.
        places: Resolution of its relative paths.
        values: Its keys with a value, keys of the tool's sections as ``section.key``.
        empty: Its keys without a value.
    """

    title: str
    source: YamlFile
    places: Places
    values: dict[str, Any]
    empty: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    carried: list[Entry] = field(default_factory=list)
    changed: list[Entry] = field(default_factory=list)
    unsupported: list[Entry] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    inner: dict[str, Any] = field(default_factory=dict)
    """Values inside the value of a key, such as ``datasets[1].path``, with report entries of their own."""
    counted: dict[tuple[str, ...], list[int] | None] = field(default_factory=dict)
    """Cached row counts by entries of ``data.train``."""
    _done: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    _as_text: set[str] = field(default_factory=set)

    # Values of the file.

    def has(self, key: str) -> bool:
        """True if the file gives the key a value."""
        return key in self.values

    def is_(self, key: str, *values: Any) -> bool:
        """True if the key has any of these values in the file (:func:`is_one_of`)."""
        return key in self.values and is_one_of(self.values[key], values)

    def is_off(self, key: str) -> bool:
        """True if the file gives the key a value that turns it off."""
        return self.is_(key, *OFF)

    def refuse(self, key: str, problem: str, hint: str = "Fix it.") -> NoReturn:
        """End the import with an error about a key.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.source.place(key)}: {redact_name(key)} {problem}.", hint)

    def get(self, key: str, kind: Kind) -> Any:
        """Value of a key, converted to a kind; None without a value.

        Numbers and booleans written as strings are converted; YAML reads ``2e-4``, without a decimal point, as a
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

    def word(self, key: str, default: str = "") -> str:
        """The string value of a key in lower case; see :meth:`get`."""
        return (self.text(key) or default).strip().lower()

    def texts(self, key: str) -> list[str] | None:
        """The list of strings of a key; see :meth:`get`. A string with commas is split."""
        found: list[str] | None = self.get(key, "texts")
        return found

    # Results; only the first result of a key counts.

    def value(self, option: str) -> Any:
        """Value of an option, or None if it is not set."""
        setting = self.settings.get(option)
        return None if setting is None else setting.value

    def put(self, option: str, value: Any, comment: str = "") -> str | None:
        """Set an option; a comment marks it as a decision.

        Returns:
            None, or the reason why the option cannot have the value and keeps its default.
        """
        declared = find_option(option)
        assert declared is not None, option  # noqa: S101 - the tables are checked by a test
        if any(holds_secret(text) for text in _texts_in(value)):
            return "It looks like a secret, and secrets are not written to a configuration."
        section, _, name = option.partition(".")
        table = {section: {name: value}}
        table.setdefault("data", {}).setdefault("train", "rows")
        try:
            Config.model_validate(table)
        except ValidationError:
            return f"{option} must be {describe_type(declared)}; it keeps its default."
        self.settings[option] = Setting(value, cleaned(comment))
        return None

    def carry(self, key: str, option: str | None = None, value: Any = None, reason: str = "") -> None:
        """Record a key of the file that means the same here, and set its option if a value is given."""
        if not self._is_open(key):
            return
        problem = self.put(option, value) if option and value is not None else None
        if problem:
            self._note(self.unsupported, key, None, problem)
        else:
            if not reason and key in self._as_text:
                reason = "YAML reads this as text; it was converted."
            self._note(self.carried, key, option, reason)

    def keep(self, *keys: str, reason: str = SAME) -> None:
        """Record keys of the file that set no option: our behavior is the same, or they have no effect."""
        for key in keys:
            self.carry(key, None, reason=reason)

    def change(self, key: str, option: str, value: Any, reason: str) -> None:
        """Record a key whose meaning differs slightly here, or a default of the tool, and set its option."""
        if key in self._done:
            return
        problem = self.put(option, value, reason)
        if problem:
            self._note(self.unsupported, key, None, problem)
        else:
            self._note(self.changed, key, option, reason)

    def take(self, key: str, option: str, value: Any, differs: str) -> None:
        """Record a key as changed, or as carried if there is no difference, and set its option."""
        if differs:
            self.change(key, option, value, differs)
        else:
            self.carry(key, option, value)

    def note_change(self, key: str, to: str, reason: str) -> None:
        """Record a changed key whose options are set already."""
        self._note(self.changed, key, to, reason)

    def drop(self, key: str, reason: str, option: str | None = None, value: Any = None) -> None:
        """Record a key of the file that is not supported; an option may be set instead."""
        if not self._is_open(key):
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
        """Record a key without a value, unless its default has been recorded already."""
        self._note(self.carried, key, None, EMPTY)

    def is_done(self, key: str) -> bool:
        """True if a key has been recorded."""
        return key in self._done

    def _is_open(self, key: str) -> bool:
        return key not in self._done and (key in self.values or key in self.inner)

    def _note(self, where: list[Entry], key: str, to: str | None, reason: str) -> None:
        if key in self._done:
            return
        self._done.add(key)
        if twice := self._repeated(key):
            where = self.changed if where is self.carried else where
            reason = " ".join([*([reason] if reason else []), *twice])
        value = next((held[key] for held in (self.values, self.inner, self.empty) if key in held), None)
        where.append(Entry(redact_name(key), redact(key, value), to, cleaned(reason)))

    def note_repeated(self) -> None:
        """Record repeated keys without an entry of their own or of a table that they are in."""
        for name in self.source.repeated.keys() - self._told:
            self.inner.setdefault(name, self.source.values.get(name))
            self._note(self.changed, name, None, "")

    def _repeated(self, key: str) -> list[str]:
        """A sentence for each repeated key at or below a key, unless it was told already."""
        inside = (f"{key}.", f"{key}[")
        found = [name for name in self.source.repeated if name == key or name.startswith(inside)]
        found = [name for name in found if name not in self._told]
        self._told.update(found)
        return [
            f"{redact_name(name)} is on lines {_listed([*self.source.repeated[name], self.source.lines[name]])}: "
            "the last one counts."
            for name in found
        ]


def is_one_of(value: Any, values: Iterable[Any]) -> bool:
    """True if a value is among others; unlike ``in``, it distinguishes ``True`` from 1 and ignores case."""

    def form(item: Any) -> Any:
        return (isinstance(item, bool), item.lower() if isinstance(item, str) else item)

    return any(form(value) == form(other) for other in values)


def file_name(path: Path) -> str:
    """The name of a file, for a comment."""
    return cleaned(one_line(path.name, 80))


def _listed(lines: list[int]) -> str:
    earlier = [*map(str, lines[:-1][:4]), *(["…"] if len(lines) > 5 else [])]
    return f"{', '.join(earlier)} and {lines[-1]}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _texts_in(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return (str(item) for item in value.values())
    return (str(item) for item in value) if isinstance(value, list) else ()


def _as_kind(value: Any, kind: Kind) -> Any:
    """A value converted to a kind; None if that is impossible."""
    if kind == "boolean":
        word = str(value).strip().lower() if isinstance(value, (str, int, float)) else ""
        return True if word in _TRUE else False if word in _FALSE else None
    if kind == "text":
        plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        return (str(value).strip() or None) if plain else None
    if kind == "texts":
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, (str, int)) for part in parts):
            return None
        return [str(part).strip() for part in parts if str(part).strip()]
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value) if isinstance(value, str) else value
        if not math.isfinite(number):
            return None
    except (ValueError, OverflowError):
        return None
    return number if kind == "number" else int(number) if number == int(number) else None

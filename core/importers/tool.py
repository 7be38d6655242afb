"""Importable tools: a table of rules for the keys of each, and reasons for unsupported keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import tomli

from core.config.schema import WEIGHT_METHODS, find_option, options
from core.importers.redact import shown
from core.importers.translation import OFF, SAME, Kind, Translation, is_one_of

_UNSUPPORTED, DATA = (
    tomli.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    for name in ("unsupported.toml", "rules.toml")
)
#: Reasons for unsupported keys, by name.
REASONS: dict[str, str] = _UNSUPPORTED["reasons"]
# Options with defaults of the tools that only adapters read.
_OF_ADAPTERS = ("method.rank", "method.alpha", "method.dropout")
_KINDS: dict[str, Any] = {option.name: option.type for option in options()}


@dataclass(frozen=True)
class Copy:
    """Rule for a key that means the same here.

    Args:
        option: Our ``section.key``.
        kind: Kind of its value.
        absent: Default of the tool, if it differs from ours.
        unset: Values equivalent to no value.
    """

    option: str
    kind: Kind
    absent: Any = None
    unset: tuple[Any, ...] = ()

    def apply(self, work: Translation, key: str) -> None:
        """Convert the key.

        Raises:
            UserError: If its value is of another kind.
        """
        if work.is_done(key):
            return
        if not work.has(key) or work.is_(key, *self.unset):
            _write_default(work, key, self)
            work.keep(key)
        else:
            work.carry(key, self.option, work.get(key, self.kind))


@dataclass(frozen=True)
class Choice:
    """Rule for a key whose values have other names here.

    Args:
        option: Our ``section.key``.
        same: Our value for each value of the tool that means the same; None for our default.
        near: Our value and a sentence on the difference, for each value that means nearly the same.
        otherwise: Our value for any other value; None for our default.
        absent: As in :class:`Copy`.
    """

    option: str
    same: Mapping[Any, Any]
    near: Mapping[Any, tuple[Any, str]] = field(default_factory=dict)
    otherwise: Any = None
    absent: Any = None

    def apply(self, work: Translation, key: str) -> None:
        """Convert the key.

        Raises:
            UserError: If its value is a list or a table.
        """
        if work.is_done(key):
            return
        if not work.has(key):
            _write_default(work, key, self)
            return
        word = work.values[key]
        if not isinstance(word, (str, bool, int, float)):
            work.refuse(key, f"must be a name, not {shown(key, word)}")
        word = word.strip() if isinstance(word, str) else word
        if word in (0, 1) and {True, False} & {*self.same, *self.near}:
            word = bool(word)
        for theirs, ours in self.same.items():
            if is_one_of(word, (theirs,)):
                work.carry(key, self.option, ours, SAME if ours is None else "")
                return
        for theirs, (ours, difference) in self.near.items():
            if is_one_of(word, (theirs,)):
                work.change(key, self.option, ours, difference)
                return
        instead = "keeps its default" if self.otherwise is None else f"is {self.otherwise}"
        work.drop(key, f"This value is not available: {self.option} {instead}.", self.option, self.otherwise)


@dataclass(frozen=True)
class Unsupported:
    """Rule for an unsupported key.

    Args:
        reason: A sentence from :data:`REASONS`.
        off: Values for which our behavior is the same.
    """

    reason: str
    off: tuple[Any, ...] = OFF


#: Converts keys together; called once, before the other rules.
Joint = Callable[[Translation], None]
Rule = Copy | Choice | Unsupported | Joint
_T = TypeVar("_T")


@dataclass(frozen=True)
class Tool:
    """The configuration format of another tool.

    Args:
        kind: Its name on the command line.
        title: Its name.
        table: Rule of each key; keys inside ``sections`` are written ``section.key``.
        signs: Keys that identify its files, the most characteristic first.
        places: Values of a file that may be paths; relative ones hint at the tool's working directory.
        sections: Keys whose values are tables of keys.
        is_open: True if keys that are not in the table are no errors.
    """

    kind: str
    title: str
    table: Mapping[str, Rule]
    signs: tuple[str, ...]
    places: Callable[[Mapping[str, Any]], Iterable[Any]]
    sections: frozenset[str] = frozenset()
    is_open: bool = False


def carry_over(tool: Tool, work: Translation) -> None:
    """Convert a file by the table of a tool; each key of the file gets exactly one report entry.

    Raises:
        UserError: If a value is of the wrong kind, or keys contradict each other.
    """
    rules = tool.table.items()
    for function in dict.fromkeys(rule for _, rule in rules if not isinstance(rule, (Copy, Choice, Unsupported))):
        function(work)
    for key, rule in rules:
        if isinstance(rule, (Copy, Choice)):
            rule.apply(work, key)
        elif not isinstance(rule, Unsupported):
            work.drop(key, "It has no effect here.")
        elif work.is_(key, *rule.off):
            work.keep(key)
        else:
            work.drop(key, rule.reason)
    known = [*tool.table, *tool.sections]
    likely = [key for key in known if getattr(tool.table.get(key), "reason", "") != REASONS["older"]]
    for key in [*work.values, *work.empty]:
        if work.is_done(key):
            continue
        if key in work.empty and (key in known or tool.is_open):
            work.note_empty(key)
        elif tool.is_open:
            work.drop(key, "It has no counterpart among the options.")
        else:
            work.note_unknown(key, likely)


def joint(function: Joint, keys: str) -> dict[str, Joint]:
    """Rules for keys, separated by spaces, that a function converts together."""
    return dict.fromkeys(keys.split(), function)


def shared(function: Callable[..., None], keys: str, *values: Any) -> dict[str, Joint]:
    """Rules for keys that a function of several tools converts; its arguments are the keys, then ``values``."""
    names = keys.split()

    def convert(work: Translation) -> None:
        function(work, *names, *values)

    return dict.fromkeys(names, convert)


def read_tool(kind: str, carried: Mapping[str, Joint], places: Callable[[Mapping[str, Any]], Iterable[Any]]) -> Tool:
    """A tool of ``rules.toml`` and ``unsupported.toml``; ``carried`` has the rules of keys that functions convert."""
    entry, keys, same = DATA[kind], _UNSUPPORTED[kind]["keys"], _UNSUPPORTED[kind]["same"]
    reasons = table(*(dict.fromkeys(names.split(), REASONS[reason]) for reason, names in keys.items()))
    rules: dict[str, Rule] = table(
        carried,
        {key: _read_rule(**parts) for key, parts in entry["rules"].items()},
        {key: Unsupported(reason, _off(reason, same.get(key, OFF))) for key, reason in reasons.items()},
    )
    sections = frozenset(entry.get("sections", "").split())
    signs = tuple(entry["signs"].split())
    return Tool(kind, entry["title"], rules, signs, places, sections, bool(entry.get("is_open")))


def _off(reason: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """Values with which a key asks for our behavior; a key of an older version is reported with any."""
    return () if reason == REASONS["older"] else tuple(values)


def table(*parts: Mapping[str, _T]) -> dict[str, _T]:
    """A table made of parts.

    Raises:
        ValueError: If a key has two rules.
    """
    found: dict[str, _T] = {}
    for part in parts:
        if twice := found.keys() & part.keys():
            raise ValueError(f"two rules for {', '.join(sorted(twice))}")
        found.update(part)
    return found


def _read_rule(like: str = "", **parts: Any) -> Any:
    """A rule of the file: a copy, a choice, or a shared one with other parts."""
    if like:
        return replace(SHARED[like], **parts)
    if "same" not in parts:
        return Copy(kind=_KINDS[parts["option"]], **parts)
    same = {theirs: ours or None for ours, names in parts.pop("same").items() for theirs in _values(names)}
    near = {theirs: (ours, differs) for names, ours, differs in parts.pop("near", []) for theirs in _values(names)}
    return Choice(same=same, near=near, **parts)


def _values(names: str) -> Iterator[str | bool]:
    for name in names.split():
        yield name
        if name in ("true", "false"):
            yield name == "true"


def _write_default(work: Translation, key: str, rule: Copy | Choice) -> None:
    """Write the default of the tool, if ours differs and no other key has set the option."""
    declared = find_option(rule.option)
    ours = declared.default if declared is not None else None
    is_idle = rule.option in _OF_ADAPTERS and work.value("method.name") in WEIGHT_METHODS
    if rule.absent not in (None, ours) and rule.option not in work.settings and not is_idle:
        work.change(key, rule.option, rule.absent, f"Not given: {work.title}'s default is {rule.absent}.")


#: Rules for keys of several tools, or with values of other names, by name.
SHARED: dict[str, Any] = {name: _read_rule(**parts) for name, parts in DATA["shared"].items()}

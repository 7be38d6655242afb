"""Tools: a table of conversion rules for the keys of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from core.importers.gaps import Gap
from core.importers.rules import OFF, Choice, Copy, Missing, is_one_of
from core.importers.translation import Translation


@dataclass(frozen=True)
class Joint:
    """A rule for keys that have a meaning only together.

    Args:
        function: Converts all of them; is called once.
        options: The options that it may set.
    """

    function: Callable[[Translation], None]
    options: tuple[str, ...]


Rule = Copy | Choice | Missing | Joint
_R = TypeVar("_R", bound=Rule)


@dataclass(frozen=True)
class Tool:
    """The configuration format of another tool.

    Args:
        kind: Its name on the command line.
        title: Its name.
        table: Each of its keys with its rule; keys inside ``sections`` are written ``section.key``.
        signs: Keys that identify its files, the most telling first.
        places: The relative paths that a file names, some of which should exist in the tool's working directory.
        sections: Keys whose values are tables of keys in their own right.
    """

    kind: str
    title: str
    table: Mapping[str, Rule]
    signs: tuple[str, ...]
    places: Callable[[Mapping[str, Any]], Iterable[str]]
    sections: frozenset[str] = frozenset()


def carry_over(tool: Tool, work: Translation, empty: Iterable[str] = ()) -> None:
    """Convert a file by a tool's table; each key of the file ends up in exactly one of the lists.

    Args:
        tool: The tool of the file.
        work: The file and its translation.
        empty: Keys without a value.
    """
    for function in dict.fromkeys(rule.function for rule in tool.table.values() if isinstance(rule, Joint)):
        function(work)
    for key, rule in tool.table.items():
        if isinstance(rule, Copy):
            work.copy(key, rule)
        elif isinstance(rule, Choice):
            work.choose(key, rule)
        elif work.has(key) and not work.is_done(key):
            _leave(work, key, rule)
    known = [*tool.table, *tool.sections]
    for key in work.values:
        if not work.is_done(key):
            work.note_unknown(key, known)
    for key in empty:
        if work.is_done(key):
            continue
        if key in known:
            work.note_empty(key)
        else:
            work.note_unknown(key, known)


def _leave(work: Translation, key: str, rule: Missing | Joint) -> None:
    if isinstance(rule, Joint):
        work.drop(key, "It has no effect here.")
    elif is_one_of(work.values[key], rule.off):
        work.carry(key, None, reason="As it is here.")
    else:
        work.drop(key, rule.instead)


def missing(groups: Mapping[Gap, str], off: Mapping[str, tuple[Any, ...]] | None = None) -> dict[str, Missing]:
    """Rules for keys that are not supported.

    Args:
        groups: The reason, to the names of the keys separated by blanks.
        off: For single keys, the values for which our behavior is the same anyway.
    """
    special = off or {}
    return table(*({key: Missing(gap, special.get(key, OFF))} for gap, keys in groups.items() for key in keys.split()))


def table(*parts: Mapping[str, _R]) -> dict[str, _R]:
    """Rules joined in one table.

    Raises:
        ValueError: If a key has two rules.
    """
    found: dict[str, _R] = {}
    for part in parts:
        if twice := found.keys() & part.keys():
            raise ValueError(f"two rules for {', '.join(sorted(twice))}")
        found.update(part)
    return found

"""Tables of rules: how the keys of another tool are carried over, a table for each tool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from core.importers.rules import OFF, Choice, Copy, Missing, is_one_of
from core.importers.translation import Translation


@dataclass(frozen=True)
class Joint:
    """Keys that mean something only together.

    Args:
        function: Carries them all over; is called once.
        options: Our options that it may set.
    """

    function: Callable[[Translation], None]
    options: tuple[str, ...]


Rule = Copy | Choice | Missing | Joint
_R = TypeVar("_R", bound=Rule)


@dataclass(frozen=True)
class Tool:
    """Another tool's configuration.

    Args:
        kind: Its name on the command line.
        title: Its name.
        table: Every key of its own, and what becomes of it; keys inside of ``sections`` are written ``section.key``.
        signs: Keys by which its files are recognized, the most telling first.
        places: The relative paths that a file names, of which some should exist where the tool is run.
        sections: Keys whose values are tables of keys in their own right.
    """

    kind: str
    title: str
    table: Mapping[str, Rule]
    signs: tuple[str, ...]
    places: Callable[[Mapping[str, Any]], Iterable[str]]
    sections: frozenset[str] = frozenset()


def carry_over(tool: Tool, work: Translation, empty: Iterable[str] = ()) -> None:
    """Carry a file over by a tool's table, each key of the file ending in exactly one of the lists.

    Args:
        tool: Whose file it is.
        work: What the file says, and what becomes of it.
        empty: Keys that have no value.
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


def missing(groups: Mapping[str, str], off: Mapping[str, tuple[Any, ...]] | None = None) -> dict[str, Missing]:
    """Rules for keys that are not offered.

    Args:
        groups: What happens instead, to the names of the keys with blanks between.
        off: For single keys, the values that ask for what happens here anyway.
    """
    special = off or {}
    return table(
        *({key: Missing(instead, special.get(key, OFF))} for instead, keys in groups.items() for key in keys.split())
    )


def table(*parts: Mapping[str, _R]) -> dict[str, _R]:
    """Rules in one table.

    Raises:
        ValueError: If a key has two rules.
    """
    found: dict[str, _R] = {}
    for part in parts:
        if twice := found.keys() & part.keys():
            raise ValueError(f"two rules for {', '.join(sorted(twice))}")
        found.update(part)
    return found


def options_of(rule: Rule) -> tuple[str, ...]:
    """The options that a rule may set."""
    if isinstance(rule, Copy):
        return (rule.option,)
    return () if isinstance(rule, Missing) else rule.options

"""How the keys of another tool are carried over, as data: a tool is one table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from core.importers.translation import Translation

Kind = Literal["integer", "number", "boolean", "text", "texts"]

#: Values that ask for nothing where a key turns something on.
OFF: tuple[Any, ...] = (False, 0, "", "none", "no", [], {})


@dataclass(frozen=True)
class Copy:
    """A key with a counterpart that means the same.

    Args:
        option: Our ``section.key``.
        kind: What its value must be.
        unset: Values with which it says nothing.
        absent: What the tool does where the key is missing, if we would do otherwise; None where there is nothing to
            write.
        why: The sentence that goes with ``absent``.
        also: Values that we have no way to say, each with what happens instead.
    """

    option: str
    kind: Kind
    unset: tuple[Any, ...] = ()
    absent: Any = None
    why: str = ""
    also: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """A key whose values have other names here.

    Args:
        option: Our ``section.key``.
        same: The tool's value to ours, where both mean the same; None where it is what happens here anyway.
        near: The tool's value to ours and the sentence that says what differs.
        otherwise: Our value for every other one, None for the default, and what it means.
        absent: As in :class:`Copy`.
        why: As in :class:`Copy`.
    """

    option: str
    same: Mapping[Any, Any]
    otherwise: tuple[Any, str]
    near: Mapping[Any, tuple[Any, str]] = field(default_factory=dict)
    absent: Any = None
    why: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """What it may set."""
        return (self.option,)


@dataclass(frozen=True)
class Missing:
    """A key that asks for what is not offered here.

    Args:
        instead: What happens instead.
        off: The values that ask for what happens here anyway.
    """

    instead: str
    off: tuple[Any, ...] = OFF


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


def is_one_of(value: Any, values: Iterable[Any]) -> bool:
    """Whether a value is among others; other than ``in``, it tells ``True`` from 1 and knows no case of letters."""

    def form(item: Any) -> Any:
        return (isinstance(item, bool), item.lower() if isinstance(item, str) else item)

    return any(form(value) == form(other) for other in values)


def options_of(rule: Rule) -> tuple[str, ...]:
    """The options that a rule may set."""
    if isinstance(rule, Copy):
        return (rule.option,)
    return () if isinstance(rule, Missing) else rule.options

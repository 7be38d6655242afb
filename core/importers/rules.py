"""Conversion rules for single keys of another tool, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.importers.gaps import Gap

Kind = Literal["integer", "number", "boolean", "text", "texts"]

#: Values that turn a key off.
OFF: tuple[Any, ...] = (False, 0, "", "none", "no", [], {})


@dataclass(frozen=True)
class Copy:
    """A key with a counterpart that means the same.

    Args:
        option: Our ``section.key``.
        kind: The kind of its value.
        unset: Values that mean the same as no value.
        absent: The tool's behavior without the key, if ours differs; None where there is nothing to
            write.
        why: The sentence for ``absent``.
        also: Values without an equivalent here, each with the consequence.
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
        same: The tool's value to ours, where both mean the same; None where it is our behavior anyway.
        near: The tool's value to ours, with a sentence about the difference.
        otherwise: Our value for every other one, None for the default, and its meaning.
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
        """The options that it may set."""
        return (self.option,)


@dataclass(frozen=True)
class Missing:
    """A key that is not supported here.

    Args:
        gap: The reason.
        off: The values for which our behavior is the same anyway.
    """

    gap: Gap
    off: tuple[Any, ...] = OFF

    @property
    def instead(self) -> str:
        """The consequence, in a sentence."""
        return self.gap.sentence


def is_one_of(value: Any, values: Iterable[Any]) -> bool:
    """Whether a value is among others; unlike ``in``, it distinguishes ``True`` from 1 and ignores case."""

    def form(item: Any) -> Any:
        return (isinstance(item, bool), item.lower() if isinstance(item, str) else item)

    return any(form(value) == form(other) for other in values)

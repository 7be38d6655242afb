"""Rules for single keys of another tool, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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


def is_one_of(value: Any, values: Iterable[Any]) -> bool:
    """Whether a value is among others; other than ``in``, it tells ``True`` from 1 and knows no case of letters."""

    def form(item: Any) -> Any:
        return (isinstance(item, bool), item.lower() if isinstance(item, str) else item)

    return any(form(value) == form(other) for other in values)

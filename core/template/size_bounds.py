"""Size bounds: upper bounds on strings that a template is about to make."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

#: Most output characters per input character of a filter.
FILTER_SIZES: dict[str, int] = {
    **dict.fromkeys(("trim", "string", "safe", "striptags", "truncate", "join", "list", "sum", "replace"), 1),
    **dict.fromkeys(("center", "indent", "format", "batch", "slice", "wordcount"), 1),
    **dict.fromkeys(("lower", "upper", "title", "capitalize"), 3),
    **dict.fromkeys(("e", "escape", "forceescape", "xmlattr", "tojson", "pprint"), 8),
    "urlencode": 12,
    "urlize": 32,
    "wordwrap": 2,
}
_NUMBERS = re.compile(r"\d+")
#: Widths passed as arguments, in the formats of ``%`` and ``format``.
_GIVEN_WIDTH = re.compile(r"\*|\{[^{}]*\{")
#: Filters that indent nested values, and the characters per level.
_NESTED = {"pprint": 2, "tojson": 0}
_ENTRY = 8
_OBJECT = 64
#: Types that hold a list of parts: the two usual types, and views of a dictionary.
_LISTS = frozenset((list, tuple, type({}.keys()), type({}.values()), type({}.items())))
#: Smallest size of a part that a string is split into.
_PART = 56


class TooLargeError(Exception):
    """The size exceeds the allowed room."""


def own_size(value: Any) -> int:
    """Size of a string, or of a list without its elements."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return _ENTRY * len(value) if isinstance(value, (list, tuple, dict)) else 0


def deep_size(value: Any, most: int, level: int = 0) -> int:
    """Number of characters of a value when written out.

    Args:
        value: A string, a number, or lists and dictionaries of them; repeated elements count each time.
        most: Limit at which counting stops.
        level: Characters of indentation per level of nesting.

    Raises:
        TooLargeError: If it takes more than ``most``.
    """
    if type(value) is str:
        return len(value)
    total = 0
    stack: list[Iterator[Any]] = [iter((value,))]
    while stack:
        for item in stack[-1]:
            total += level * len(stack)
            parts, kind = None, type(item)
            if kind is str:
                total += len(item)
            elif kind in _LISTS or isinstance(item, (list, tuple, set, frozenset)):
                total += _ENTRY * len(item) + _ENTRY
                parts = iter(item)
            elif kind is dict or isinstance(item, Mapping):
                total += _ENTRY * len(item) + _ENTRY
                parts = itertools.chain.from_iterable(item.items())
            elif isinstance(item, int):
                total += _ENTRY + item.bit_length() // 3
            elif isinstance(item, (str, bytes)):
                total += len(item) * (1 if isinstance(item, str) else 4)
            else:
                total += _ENTRY * len(item) if kind is range else _OBJECT
            if total > most:
                raise TooLargeError
            if parts is not None:
                stack.append(parts)
                break
        else:
            stack.pop()
    return total


def filter_size(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], room: int) -> int:
    """Upper bound on the output of a filter.

    Args:
        name: Name of the filter.
        args: Its arguments, the value first.
        kwargs: Its keyword arguments.
        room: Allowed size.

    Raises:
        TooLargeError: If the bound exceeds ``room``.
    """
    value = args[0] if args else ""
    given = [*args[1:], *kwargs.values()]
    numbers = sum(item for item in given if isinstance(item, int) and item > 0)
    if name == "replace" and len(args) >= 3:
        return _replaced(str(value), str(args[1]), str(args[2]))
    if name == "format":
        return _formatted(str(value), given, room)
    level = _NESTED.get(name, 0) + (_width(given) if name == "tojson" else 0)
    size = FILTER_SIZES[name] * deep_size(value, room, level)
    if name == "indent":
        return size + max([numbers, *map(_length, given)]) * (str(value).count("\n") + 1)
    if name == "wordwrap":
        return size * (1 + max(map(_length, given), default=1))
    if name == "join":
        return size + max(map(_length, given), default=0) * (len(value) if hasattr(value, "__len__") else 0)
    if name == "replace":
        return size * (1 + max(map(_length, given), default=0))
    return size + (_OBJECT if name in ("batch", "slice") else 1) * numbers


def method_size(text: str | bytes, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], room: int) -> int:
    """Upper bound on the result of a string method, or of the operator ``%``.

    Raises:
        TooLargeError: If the bound exceeds ``room``.
    """
    given = [*args, *kwargs.values()]
    if name in ("format", "format_map", "%"):
        return _formatted(text, given, room)
    if name == "replace" and len(args) >= 2 and all(isinstance(item, type(text)) for item in args[:2]):
        return _replaced(text, args[0], args[1])
    if name == "join" and args:
        parts = args[0]
        return deep_size(parts, room) + len(text) * (len(parts) if hasattr(parts, "__len__") else 0)
    if name == "translate":
        return len(text) * (1 + sum(deep_size(item, room) for item in given))
    if name == "expandtabs":
        tabs = text.count("\t" if isinstance(text, str) else b"\t")  # type: ignore[arg-type]
        return len(text) + tabs * max((item for item in given if isinstance(item, int)), default=8)
    if name in ("split", "rsplit", "splitlines"):
        return len(text) + _PART * _parts(text, args)
    widest = max((item for item in given if isinstance(item, int)), default=0)
    return 3 * len(text) + max(widest, 0)


def _parts(text: Any, args: Sequence[Any]) -> int:
    """Number of parts that a string is split into."""
    if args and isinstance(args[0], type(text)) and args[0]:
        return int(text.count(args[0])) + 1
    return len(text) // 2 + 1


def _replaced(text: Any, old: Any, new: Any) -> int:
    return len(text) + int(text.count(old)) * len(new)


def _formatted(text: str | bytes, given: Sequence[Any], room: int) -> int:
    """Upper bound on a formatted string: each field may hold all arguments, as wide as the largest number."""
    shown = text if isinstance(text, str) else text.decode("latin-1")
    places = shown.count("%") + shown.count("{")
    if not places:
        return len(shown)
    widths = 0
    for found in _NUMBERS.finditer(shown):
        if len(found.group()) > 9:
            raise TooLargeError
        widths += int(found.group())
    numbers: list[int] = []
    for item in given:
        parts = item if isinstance(item, (list, tuple)) else item.values() if isinstance(item, dict) else (item,)
        numbers += [abs(part) for part in parts if isinstance(part, int)]
    widths += len(_GIVEN_WIDTH.findall(shown)) * max(numbers, default=0)
    return len(shown) + widths + places * sum(deep_size(item, room) for item in given)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes)) else 0


def _width(given: Sequence[Any]) -> int:
    """Indentation of JSON, passed as a number or as a string."""
    whole: Callable[[Any], int] = lambda item: item if isinstance(item, int) and item > 0 else _length(item)  # noqa: E731
    return max(map(whole, given), default=0)

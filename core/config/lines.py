"""The line of a TOML file on which a key is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tomli

#: The most beginnings of a file that are parsed; one value over a thousand lines is not worth more.
_ATTEMPTS = 600


def line_of(text: str, *path: str) -> int | None:
    """The line, counted from 1, on which a key or a section begins; None where it is not written.

    All of TOML is understood, since the file is parsed: the key is written on the first line after the longest
    beginning of the file that is valid TOML and does not have the key.

    Args:
        text: The TOML text.
        path: The key, section by section: ``"data", "train"``.
    """
    lines = text.split("\n")
    if not _has(_read(lines, len(lines)), path):
        return None
    # Invariant: the beginning of `low` lines is TOML without the key, that of `high` lines is TOML with it.
    low, high, attempts = 0, len(lines), 0
    while high - low > 1:
        middle = (low + high) // 2
        # In the middle of a value of several lines neither holds: back to its beginning, else on to its end.
        for count in [*range(middle, low, -1), *range(middle + 1, high)]:
            attempts += 1
            if attempts > _ATTEMPTS:
                return None
            found = _read(lines, count)
            if found is not None:
                break
        else:
            break
        if _has(found, path):
            high = count
        else:
            low = count
    return low + 1


def repeated_line(text: str) -> int | None:
    """The line, counted from 1, on which a key or a section is repeated; None where none is, or it is too far down."""
    lines = text.split("\n")
    for count in range(1, min(len(lines), _ATTEMPTS) + 1):
        try:
            tomli.loads("\n".join(lines[:count]))
        except RecursionError:
            return None
        except ValueError as error:
            # Other errors may come from a value that continues below.
            if str(error).startswith("Cannot "):
                return count
    return None


def _read(lines: Sequence[str], count: int) -> Mapping[str, Any] | None:
    """The first lines as a TOML document; None where they are not valid."""
    try:
        return tomli.loads("\n".join(lines[:count]))
    except (ValueError, RecursionError):
        # Numbers of too many digits raise an error of Python's own.
        return None


def _has(found: Any, path: Sequence[str]) -> bool:
    for key in path:
        if isinstance(found, list):
            found = found[0] if found else None
        if not isinstance(found, Mapping) or key not in found:
            return False
        found = found[key]
    return True

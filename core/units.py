"""Formatting and parsing of numbers with units, in steady widths.

Every number can be shown: one beyond the range of a float reads as infinite, and none fills a line with
digits.
"""

from __future__ import annotations

import math
import re
from datetime import datetime

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_MOST_BYTES = 2**64
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
#: Numbers from this size on are written with a power of ten.
_LONG = 1e6
#: Seconds from which a duration is meaningless: ten thousand years.
_ENDLESS = 10_000 * 365 * 86_400.0


def to_float(value: float) -> float:
    """A number as a float; an integer that is too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def format_bytes(count: float | None) -> str:
    """A size in bytes in decimal units with three significant digits: ``39.0 MB``; ``–`` where unknown."""
    if count is None:
        return "–"
    value = to_float(count)
    if not math.isfinite(value) or abs(value) >= _LONG * 1e15:
        return f"{format_number(value / 1e15)} PB"
    for unit in _BYTE_UNITS:
        # Compared after rounding, so that 999.9 kB becomes 1.0 MB and not 1000 kB.
        if abs(value) < 999.5 or unit == _BYTE_UNITS[-1]:
            if unit == "B":
                return f"{value:.0f} B"
            return f"{value:.1f} {unit}" if abs(value) < 99.95 else f"{value:.0f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def parse_bytes(text: str) -> int | None:
    """A size that a person typed, in bytes: ``24GB`` and ``24g`` are decimal, ``24GiB`` is binary, ``24`` is 24 bytes.

    None for a text that is not a size, or for more than any machine can address.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, prefix, binary = match.groups()
    power = " kmgtp".index(prefix.lower() or " ")
    if binary and not power:
        return None
    unit: int = (1024 if binary else 1000) ** power
    size = float(number) * unit
    return round(size) if size < _MOST_BYTES else None


def format_duration(seconds: float | None) -> str:
    """A duration in seconds as ``8.2s``, ``1m 12s``, ``3h 04m`` or ``2d 05h``; ``–`` where unknown."""
    if seconds is None or not 0 <= (seconds := to_float(seconds)) < _ENDLESS:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, whole = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {whole:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02d}h"


def format_ago(seconds: float) -> str:
    """A time in the past by its distance in seconds, in one unit: ``12 min ago``; ``just now`` within a minute."""
    if not seconds >= 60:
        return "just now"
    if not seconds < _ENDLESS:
        return "long ago"
    size, unit = next(pair for pair in ((86_400, "day"), (3600, "h"), (60, "min")) if seconds >= pair[0])
    count = int(seconds // size)
    return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''} ago"


def coarse_ago(seconds: float) -> str:
    """A time in the past as by :func:`format_ago`, in steps of five minutes within the first hour.

    For text that stays on a screen for long and is repainted whenever it changes.
    """
    return format_ago(seconds // 300 * 300 if 0 <= seconds < 3600 else seconds)


def format_number(value: float | None, digits: int = 3) -> str:
    """A measured number with a fixed count of significant digits (``0.412``, ``8.1e-4``); ``–`` where unknown."""
    if value is None:
        return "–"
    value = to_float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    # Of the rounded number: 0.9996 is shown as 1.00.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if exponent < -3 or exponent >= 6:
        return format_power(value, digits - 1)
    return f"{value:.{max(digits - 1 - exponent, 0)}f}"


def format_power(value: float, digits: int = 2) -> str:
    """A number with a power of ten at any size, for one that moves across the forms of :func:`format_number`:
    ``8.1e-4``, ``1.0e-3``.
    """
    mantissa, _, power = f"{to_float(value):.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(power)}" if power and value else format_number(value)


def format_fixed(value: float | None, decimals: int) -> str:
    """A measured number with a fixed count of decimals: ``0.83``; from a million on as :func:`format_number`."""
    if value is None or not abs(to_float(value)) < _LONG:
        return format_number(value)
    return f"{value:.{decimals}f}"


def exact_number(value: float) -> str:
    """A number of a configuration with all its digits, in its usual form: ``0.05``, ``2``, ``1e-4`` below 0.001."""
    value = to_float(value)
    if not math.isfinite(value) or value == 0 or abs(value) >= 1e-3:
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    # The shortest digits that denote exactly this number.
    mantissa, _, power = next(text for digits in range(17) if float(text := f"{value:.{digits}e}") == value).partition(
        "e"
    )
    return f"{mantissa}e{int(power)}"


def format_count(count: float) -> str:
    """A count with its thousands separated: ``1,000,000``; a space would let a line break inside of the number."""
    # A whole number as it is: it may be larger than any float.
    return f"{count:,}" if isinstance(count, int) else f"{count:,.0f}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A count with its noun: ``1 run``, ``3 runs``; ``plural`` for an irregular one."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def short_count(count: int | None) -> str:
    """A large number, such as that of a model's parameters, in three digits at most: ``135 M``, ``7.6 B``."""
    if count is None:
        return "–"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # Compared after rounding, so that 999.9 M becomes 1.0 B and not 1000 M.
        if count >= size * 0.9995:
            value = to_float(count) / size
            return f"{value:.1f} {unit}" if value < 9.95 else f"{min(value, 1e6):.0f} {unit}"
    return str(count)


def format_rate(tokens_per_second: float | None) -> str:
    """A speed in tokens per second: ``318 tok/s``; ``–`` where unknown."""
    if tokens_per_second is None or not math.isfinite(rate := to_float(tokens_per_second)):
        return "–"
    count = format_count(rate) if abs(rate) < 1e9 else format_number(rate)
    return f"{count} tok/s"


def format_moment(moment: float, pattern: str, unknown: str = "–") -> str:
    """A Unix time in local time, formatted by ``strftime``; ``unknown`` where it is outside the calendar."""
    try:
        return datetime.fromtimestamp(moment).strftime(pattern)
    except (ValueError, OverflowError, OSError):
        return unknown

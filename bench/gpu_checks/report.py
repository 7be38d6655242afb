"""Report of the checks: one JSON object, and lines for the table in ``docs/performance.md``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.gpu_checks.subjects import SUBJECTS, Found, Subject


def report(
    device: Mapping[str, Any],
    versions: Mapping[str, str],
    today: str,
    found: Mapping[int, Found],
    **more: Any,
) -> dict[str, Any]:
    """The report.

    Args:
        device: Facts about the device, as the self-test has them.
        versions: Versions of the libraries.
        today: The date.
        found: Outcomes by the checks' numbers.
        more: Further entries: the ballast, the minutes.
    """
    return {
        "date": today,
        "device": device.get("name", ""),
        "driver": device.get("driver", ""),
        "facts": dict(device),
        "versions": dict(versions),
        **more,
        "checks": [_entry(subject, found[subject.number]) for subject in _in_order(found)],
    }


def _in_order(found: Mapping[int, Found]) -> list[Subject]:
    return sorted((subject for subject in SUBJECTS if subject.number in found), key=lambda subject: subject.number)


def _entry(subject: Subject, outcome: Found) -> dict[str, Any]:
    return {
        "number": subject.number,
        "name": subject.name,
        "settles": subject.settles,
        "result": outcome.result,
        "detail": outcome.detail,
        "figures": jsonable(outcome.figures),
        "seconds": round(outcome.seconds, 2),
    }


def jsonable(value: Any) -> Any:
    """The value with numbers that JSON does not have as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def file_name(device: str, today: str) -> str:
    """The name of the report's file: ``gpu-nvidia-h100-2026-01-31.json``."""
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower())[:60].strip('-') or 'device'}-{today}.json"


def summary(found: Mapping[int, Found]) -> list[str]:
    """Outcomes for the terminal, a line each."""
    return [
        f"{subject.number:>2} {subject.name}: {found[subject.number].result}, {found[subject.number].seconds:.0f} s. "
        f"{found[subject.number].detail}"
        for subject in _in_order(found)
    ]


# The table.


@dataclass(frozen=True)
class _Line:
    """A line of the table: what, the estimate, the check, and how its figure is read and written."""

    what: str
    estimate: str
    number: int
    read: Callable[[Mapping[str, Any]], Any]
    write: str


def _of(*path: str) -> Callable[[Mapping[str, Any]], Any]:
    """Reads a figure by its keys; None where one is missing."""

    def read(figures: Mapping[str, Any]) -> Any:
        value: Any = figures
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return read


def _gib(*path: str) -> Callable[[Mapping[str, Any]], Any]:
    read = _of(*path)
    return lambda figures: None if (value := read(figures)) is None else value / 2**30


LINES: tuple[_Line, ...] = (
    _Line(
        "8B QLoRA, rows of 2,048, as planned for 24 GB, tokens/s",
        "3,060 (RTX 4090)",
        6,
        _of("fastest", "tokens_per_second"),
        "{:,.0f}",
    ),
    _Line(
        "the same, all layers recomputed, tokens/s",
        "2,240 (RTX 4090)",
        6,
        _of("cases", "2 rows, recomputed", "tokens_per_second"),
        "{:,.0f}",
    ),
    _Line("the same, peak of tensors, GiB", "8.7", 6, _gib("cases", "2 rows, recomputed", "peak_bytes"), "{:.1f}"),
    _Line("gain of not recomputing, fastest against recomputed", "+37 %", 6, _of("gain"), "{:+.0%}"),
    _Line("plan against peak, largest error", "within 7 %", 7, _of("worst"), "{:.1%}"),
    _Line("allocator, held and not used, share", "4 %", 7, _of("fragmentation"), "{:.1%}"),
    _Line("process without tensors, GiB", "0.6", 2, _gib("context_bytes"), "{:.2f}"),
    _Line("8B step of 4 x 2,048, kept, scaled to a 4090, s", "2.7", 8, _of("kept", "scaled_seconds"), "{:.2f}"),
    _Line("strict, price of a step", "unknown", 10, _of("strict_price"), "{:+.1%}"),
    _Line("attention without a mask, faster by", "3 to 4 times", 5, _of("speedup"), "{:.1f}"),
    _Line("8-bit optimizer, 448 adapters, s a step", "0.10 to 0.15 before", 16, _of("ours_seconds"), "{:.3f}"),
    _Line("stochastic rounding, s for 8e9 weights", "0.65", 13, _of("seconds_8b"), "{:.2f}"),
    _Line("chat, 8B and adapter, tokens/s", "35 to 40 (RTX 4090)", 17, _of("chat 0"), "{:.0f}"),
    _Line("TRL, the same rows, tokens/s", "unknown", 19, _of("TRL", "tokens_per_second"), "{:,.0f}"),
)


def settled(found: Mapping[int, Found], device: str, today: str) -> list[str]:
    """Lines of the table ``estimated / measured on / by what command`` for the figures that there are.

    Args:
        found: Outcomes by the checks' numbers.
        device: Name of the device.
        today: The date.
    """
    lines = []
    for line in _with_figures(found):
        value = line.read(found[line.number].figures)
        lines.append(
            f"| {line.what} | {line.estimate} | {line.write.format(value)} | {device}, {today} "
            f"| `python bench/gpu.py --only {line.number}` |"
        )
    return lines


def _with_figures(found: Mapping[int, Found]) -> Iterable[_Line]:
    for line in LINES:
        outcome = found.get(line.number)
        value = line.read(outcome.figures) if outcome is not None else None
        if isinstance(value, int | float) and math.isfinite(value):
            yield line

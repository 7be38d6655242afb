"""Spans as JSON, for the process that executes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from core.audit.spans import Span, Team
from core.runs.record.events import Event, decode_event, encode_event


def span_to(span: Span) -> dict[str, Any]:
    """A span as JSON."""
    return {
        "begin": span.begin,
        "end": span.end,
        "script": [encode_event(event) for event in span.script],
        "rolled_back": span.rolled_back,
        "left_out": list(span.left_out),
        "rollbacks": span.rollbacks,
        "changes": span.changes,
        "team": asdict(span.team),
    }


def span_from(values: Mapping[str, Any]) -> Span:
    """The span in the JSON of :func:`span_to`."""
    events = [decode_event(line.encode("utf-8", errors="replace")) for line in values["script"]]
    script: tuple[Event, ...] = tuple(event for event in events if event is not None)
    return Span(
        values["begin"],
        values["end"],
        script,
        rolled_back=bool(values["rolled_back"]),
        left_out=tuple(map(int, values["left_out"])),
        rollbacks=int(values["rollbacks"]),
        changes=dict(values["changes"]),
        team=Team(**values["team"]),
    )


def recorded_threads(start: Mapping[str, Any]) -> int | None:
    """Number of threads per process of a start; None if it is not recorded.

    Args:
        start: Body of its link in the chain.
    """
    machine = start.get("machine")
    threads = machine.get("threads") if isinstance(machine, dict) else None
    return threads if type(threads) is int and threads > 0 else None

"""Events as the sentences of a log, safe to show and one line each."""

from __future__ import annotations

from datetime import datetime

from core.runs.events import (
    CheckpointEvent,
    ControlEvent,
    DataEvent,
    EvalEvent,
    FinishedEvent,
    GovernorEvent,
    NoticeEvent,
    PhaseEvent,
)
from core.text import one_line
from core.units import format_bytes, format_number

#: What a phase is called.
PHASES = {
    "importing": "importing",
    "loading_model": "loading the model",
    "preparing_data": "preparing the data",
    "rehearsing": "rehearsing the longest batch",
    "training": "training",
    "evaluating": "evaluating",
    "saving": "saving",
}
#: Phases that report something of their own when they are through.
_SILENT = frozenset({"evaluating", "saving"})
_REASONS = {
    "overlong": "too long",
    "too_long": "too long",
    "no_supervised_tokens": "nothing to learn from",
    "invalid": "not readable",
}


def clock(moment: float) -> str:
    """Local time of day, ``14:37:02``; dashes where the time makes none."""
    try:
        return datetime.fromtimestamp(moment).strftime("%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "--:--:--"


def safe(text: str) -> str:
    """Text from outside, for one line of the screen."""
    return one_line(text, 500)


def size(count: int) -> str:
    """Bytes without a needless ``.0``: ``39 MB``."""
    return format_bytes(count).replace(".0 ", " ")


def phase_name(name: str) -> str:
    """What a phase is called: ``loading the model``."""
    return PHASES.get(name) or safe(name.replace("_", " "))


def phase(event: PhaseEvent) -> str:
    """``loading the model: SmolLM2``; empty for phases that report by themselves."""
    if event.name in _SILENT:
        return ""
    return phase_name(event.name) + (f": {safe(event.detail)}" if event.detail else "")


def data(event: DataEvent) -> str:
    """``410 of 412 rows used (dropped: 2 too long), longest 212 tokens, 33 % supervised``."""
    line = f"{event.used} of {event.rows} rows used"
    dropped = [f"{count} {_REASONS.get(why) or safe(why.replace('_', ' '))}" for why, count in event.dropped.items()]
    if dropped:
        line += f" (dropped: {', '.join(dropped)})"
    line += f", longest {event.longest} tokens"
    return line + (f", {event.supervised_tokens / event.tokens:.0%} supervised" if event.tokens > 0 else "")


def evaluation(event: EvalEvent) -> str:
    """``eval loss 0.455, exact match 0.83 (60 rows)``."""
    line = f"eval loss {format_number(event.loss)}"
    if event.exact_match is not None:
        line += f", exact match {event.exact_match:.2f}"
    if event.valid_json is not None:
        line += f", valid JSON {event.valid_json:.2f}"
    return line + (f" ({event.rows} rows)" if event.rows is not None else "")


def checkpoint(event: CheckpointEvent) -> str:
    """``checkpoint step-30 (1.2 s, 39 MB)``."""
    return f"checkpoint step-{event.step} ({event.seconds:.1f} s, {size(event.bytes)})"


def governor(event: GovernorEvent) -> str:
    """``governor: pause, temperature 86 (limit 83)``."""
    line = f"governor: {safe(event.action)}, {safe(event.cause)}"
    if event.value is not None:
        line += f" {format_number(event.value)}"
    return line + (f" (limit {format_number(event.limit)})" if event.limit is not None else "")


def notice(event: NoticeEvent) -> str:
    """The message, then what to do."""
    return safe(f"{event.message} {event.hint}".strip())


def control(event: ControlEvent) -> str:
    """``pause by socket: ok``."""
    return safe(f"{event.command} by {event.sender}" + (f": {event.result}" if event.result else ""))


def end(event: FinishedEvent) -> str:
    """``finished at step 120, adapter in adapter/``, ``stopped at step 40: asked to``, ``failed at step 3: …``."""
    line = f"{event.type} at step {event.step}"
    if event.reason and event.type != "finished":
        line += f": {safe(event.reason)}"
    if event.adapter:
        line += f", adapter in {safe(event.adapter)}/"
    return line + (f" {safe(event.hint)}" if event.hint else "")

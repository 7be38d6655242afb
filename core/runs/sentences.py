"""Log sentences of events, one line each and safe to show."""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.governor import words
from core.runs import changes
from core.runs.events import (
    CheckpointEvent,
    ControlEvent,
    DataEvent,
    EvalEvent,
    FinishedEvent,
    GovernorEvent,
    NightEvent,
    NoticeEvent,
    PhaseEvent,
    ProbeEvent,
    RollbackEvent,
)
from core.runs.ranks import Rank, in_words
from core.text import one_line
from core.units import format_bytes, format_fixed, format_moment, format_number

#: Display names of phases.
PHASES = {
    "importing": "importing",
    "preparing_model": "making the model ready",
    "preparing_data": "preparing the data",
    "loading_model": "loading the model",
    "rehearsing": "rehearsing the longest batch",
    "training": "training",
    "evaluating": "evaluating",
    "saving": "saving",
}
#: End reason of a run that reached its last step, and whose adapter is that of its last step.
ALL_DONE = "all steps done"
#: Phases that report their own result.
_SILENT = frozenset({"evaluating", "saving"})
_REASONS = {
    "overlong": "too long",
    "too_long": "too long",
    "no_supervised_tokens": "nothing to learn from",
    "invalid": "not readable",
}
#: Commands as past participles.
_DONE = {
    "pause": "paused",
    "park": "parked",
    "resume": "resumed",
    "checkpoint": "checkpoint saved",
    "stop": "stopped",
    "set": "changed",
    "generate": "answered a question",
    "skip_evaluation": "evaluation before the first step skipped",
}
#: Commands as nouns, if their names are not.
_ASKED = {"set": "change", "generate": "question", "skip_evaluation": "skipping the evaluation"}
#: The worker's report of a generated answer: its source, tokens, and end.
_GENERATED = re.compile(r"([\w.-]+): (\d+) tokens, (\w+)")
_FINISHES = {"stop": "", "length": ", cut at the longest answer allowed", "cancelled": ", stopped by the asker"}


def clock(moment: float) -> str:
    """Local time of day, ``14:37:02``; dashes for an invalid time."""
    return format_moment(moment, "%H:%M:%S", "--:--:--")


def safe(text: str) -> str:
    """Untrusted text, sanitized for one line of the screen."""
    return one_line(text, 500)


def size(count: int) -> str:
    """Size in bytes without a needless ``.0``: ``39 MB``."""
    return format_bytes(count).replace(".0 ", " ")


def phase_name(name: str) -> str:
    """Display name of a phase: ``loading the model``."""
    return PHASES.get(name) or safe(name.replace("_", " "))


def phase(event: PhaseEvent) -> str:
    """Sentence of a phase, ``loading the model: SmolLM2``; empty for phases that report their own result."""
    if event.name in _SILENT:
        return ""
    return phase_name(event.name) + (f": {safe(event.detail)}" if event.detail else "")


def data(event: DataEvent) -> str:
    """Sentence of a data event, ``410 of 412 rows used (dropped: 2 too long), longest 212 tokens, 33 % learned``."""
    line = f"{event.used} of {event.rows} {'row' if event.rows == 1 else 'rows'} used"
    dropped = [f"{count} {_REASONS.get(why) or safe(why.replace('_', ' '))}" for why, count in event.dropped.items()]
    if dropped:
        line += f" (dropped: {', '.join(dropped)})"
    line += f", longest {event.longest} tokens"
    supervised = event.supervised_tokens
    return line + (f", {supervised / event.tokens:.0%} learned" if 0 <= supervised <= event.tokens > 0 else "")


def evaluation(event: EvalEvent) -> str:
    """Sentence of an evaluation, ``eval loss 0.455, exact match 0.83 (60 rows)``."""
    line = f"eval loss {format_number(event.loss)}"
    if event.exact_match is not None:
        line += f", exact match {format_fixed(event.exact_match, 2)}"
    if event.valid_json is not None:
        line += f", valid JSON {format_fixed(event.valid_json, 2)}"
    if event.reward_accuracy is not None:
        line += f", reward accuracy {format_fixed(event.reward_accuracy, 2)}"
    if event.reward_margin is not None:
        line += f", margin {format_number(event.reward_margin)}"
    if event.rows is not None:
        line += f" ({event.rows} {'row' if event.rows == 1 else 'rows'})"
    return line + (f", probe loss {format_number(event.probe_loss)}" if event.probe_loss is not None else "")


def probe(event: ProbeEvent) -> str:
    """Sentence of the probe before the first step, ``probe loss 2.31 before the first step``."""
    return f"probe loss {format_number(event.loss)} before the first step"


def ranks(found: Sequence[Rank], strategy: str) -> str:
    """Sentence of the processes of a run, ``2 processes on 2 machines: head (cuda:0), tower (cuda:0)``."""
    return safe(in_words(found) + (f"; {strategy}" if strategy else ""))


def checkpoint(event: CheckpointEvent) -> str:
    """Sentence of a checkpoint, ``checkpoint step-30 (1.2 s, 39 MB)``."""
    return f"checkpoint step-{event.step} ({format_fixed(event.seconds, 1)} s, {size(event.bytes)})"


def governor(event: GovernorEvent) -> str:
    """Sentence of a governor action, ``governor: slowed to 60 % to hold 80 °C``."""
    return safe(f"governor: {words.describe(event.action, event.cause, event.value, event.limit, event.duty)}")


def night(event: NightEvent) -> str:
    """Sentence of a promise, ``night: done by 08:40 with 0.82 kWh (promised 06:35, 0.80 kWh), 0.31 kWh so far; 08:45 in
    place of 07:00, which cannot be met``."""
    line = words.promised(
        event.finish, event.energy_kwh, event.promised_finish, event.promised_energy_kwh, event.used_kwh
    )
    replaced = words.in_place(event.deadline, event.nearest_deadline, event.energy_limit_kwh, event.nearest_energy_kwh)
    return safe(f"night: {line}" + (f"; {replaced}" if replaced else ""))


def rollback(event: RollbackEvent) -> str:
    """Sentence of a rollback, ``back to step-30, without steps 41 to 43: loss 7.13 where about 1.2 was expected; their
    rows: faq.jsonl lines 3 and 9``."""
    steps = f"step {event.first}" if event.first == event.last else f"steps {event.first} to {event.last}"
    line = f"back to step-{event.step}, without {steps}: loss {format_number(event.loss)}"
    if event.expected is not None:
        line += f" where about {format_number(event.expected)} was expected"
    return safe(line + (f"; rows: {event.rows}" if event.rows else ""))


def notice(event: NoticeEvent) -> str:
    """Sentence of a notice: the message, then the hint."""
    return safe(_joined(event.message, event.hint))


def sender(name: str) -> str:
    """Sender of a command in words: ``on request`` for the control socket, ``by SIGTERM`` for a signal."""
    return "on request" if name == "socket" else f"by {name}"


def control(event: ControlEvent) -> str:
    """Sentence of a command, ``paused on request``, ``answered a question as step-34: 106 tokens``, ``pause on request
    refused: …``.
    """
    who, result = sender(event.sender), event.result
    if event.command == "generate" and (found := _GENERATED.fullmatch(result)):
        source, count, finish = found.groups()
        line = f"answered a question as {source}: {count} {'token' if count == '1' else 'tokens'}"
        return safe(line + _FINISHES.get(finish, f", {finish}"))
    if event.command == "withdraw":
        names = [_ASKED.get(name, name) for name in result.split(", ")]
        return safe(f"taken back {who}: {', '.join(names)}")
    if result.startswith("refused"):
        return safe(f"{_ASKED.get(event.command, event.command)} {who} {result}")
    if event.command == "set" and (values := changes.recall(result)):
        told = "kept from the checkpoint" if event.sender == changes.KEPT else f"changed {who}"
        return safe(f"{told}: {changes.in_words(values)}")
    done = _DONE.get(event.command, event.command)
    return safe(f"{done} {who}" + (f": {result}" if result not in ("", "ok") else ""))


def end(event: FinishedEvent) -> str:
    """Sentence of an end, ``finished at step 120, adapter in adapter/. Talk to it: …``, ``failed at step 3: …``."""
    reason = safe(event.reason) if event.reason != ALL_DONE else ""
    line = reason if reason.startswith(event.type) else f"{event.type} at step {event.step}"
    if event.best is not None and event.best != event.step:
        line += f", best at step {event.best}"
    if event.adapter:
        line += f", {'model' if event.adapter == 'model' else 'adapter'} in {safe(event.adapter)}/"
    if reason and not line.startswith(reason):
        line += f": {reason}"
    if event.refused:
        line += f", and refused by eval.gate: {safe(event.refused)}"
    return _joined(line, safe(event.hint))


def _joined(sentence: str, hint: str) -> str:
    """A sentence and a hint, with a full stop between them."""
    sentence, hint = sentence.strip(), hint.strip()
    if sentence and hint and sentence[-1] not in ".!?:…":
        sentence += "."
    return f"{sentence} {hint}".strip()

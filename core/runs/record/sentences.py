"""Sentences for the log and status line of a run, safe to show: events, changes, and its present activity."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.governor import words
from core.governor.policy import DISK
from core.runs.record import events
from core.runs.record.state import Rank, RunState, StepProgress, rank_words
from core.runs.record.timings import EVALUATING, Timings
from core.small_files import parse_json
from core.text import one_line
from core.units import counted, exact_number, format_bytes, format_duration, format_fixed, format_moment, format_number

_DATE_PREFIX = "YYYYMMDD-"
_STAMP_PREFIX = re.compile(r"\d{8}-\d{6}-(?=.)", re.ASCII)


def slug_of(identity: str) -> str:
    """The slug at the end of a run's id; the whole id if it does not begin with a time."""
    return _STAMP_PREFIX.sub("", identity, count=1) if _STAMP_PREFIX.match(identity) else identity


def brief_id(identity: str) -> str:
    """A run's id without the date, ``203633-faq``, for a line with little room; safe to show."""
    return one_line(identity[len(_DATE_PREFIX) :] if _STAMP_PREFIX.match(identity) else identity, 60)


#: Sender of changes that a run was continued with.
KEPT = "checkpoint"
_CHANGE = re.compile(r"(\w{1,40}\.\w{1,40}) = ([^\s,]{1,40})(?=,|\s|$)")
#: Largest plausible value of an option; numbers that are greater or not finite are ignored.
_GREATEST_VALUE = 1e300
#: A time of day, or a span of it.
_CLOCK = re.compile(r"\d{1,2}:\d{2}(-\d{1,2}:\d{2})?")
#: Display names of options, and texts for options without a value.
_NOUNS = {
    "train.learning_rate": ("learning rate {}", ""),
    "eval.every_steps": ("evaluation every {} steps", "no evaluation by steps"),
    "checkpoint.every_steps": ("checkpoint every {} steps", "ten checkpoints in a run"),
    "hardware.temperature_limit_c": ("temperature limit {} °C", "no temperature limit"),
    "hardware.memory_temperature_limit_c": ("memory temperature limit {} °C", "no memory temperature limit"),
    "hardware.power_limit_w": ("average power limit {} W", "no limit of average power"),
    "hardware.host_memory_limit_percent": ("stop at {} % of the memory", "no limit of the memory"),
    "hardware.disk_free_min_gb": ("pause below {} GB of room", "no pause for want of room"),
    "night.deadline": ("done by {}", "no deadline"),
    "night.energy_kwh": ("with {} kWh", "no limit of energy"),
    "night.quiet_hours": ("quiet hours {}", "no quiet hours"),
    "night.quiet_power_w": ("{} W in quiet hours", "a pause in quiet hours"),
}


def encode_changes(changes: Mapping[str, Any]) -> str:
    """Changes as the result of a ``control`` event: ``train.learning_rate = 0.0002, eval.every_steps = None``."""
    return ", ".join(f"{name} = {value}" for name, value in changes.items())


def decode_changes(result: str) -> dict[str, Any]:
    """Parse the changes that a result records, ``section.key`` to a number, a time of day or None; unknown parts are
    ignored."""
    found: dict[str, Any] = {}
    for name, text in _CHANGE.findall(result):
        if text == "None":
            found[name] = None
            continue
        if _CLOCK.fullmatch(text):
            found[name] = text
            continue
        try:
            value = parse_json(text)
        except ValueError:
            continue
        if type(value) in (int, float) and abs(value) <= _GREATEST_VALUE:
            found[name] = value
    return found


def change_words(changes: Mapping[str, Any]) -> str:
    """Changes in words: ``learning rate 2e-4, evaluation every 50 steps``."""
    return ", ".join(_change(name, value) for name, value in changes.items())


def _change(name: str, value: Any) -> str:
    there, absent = _NOUNS.get(name, (f"{name} {{}}", f"{name} unset"))
    if value is None:
        return absent
    if value == 1 and name.endswith("every_steps"):
        return there.format("").replace("  steps", " step")
    return there.format(exact_number(value) if isinstance(value, float) else value)


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
#: End reason of a run that reached its last step, and whose adapter is of that step.
ALL_DONE = "all steps done"
#: Phases that report their own result.
_SILENT = frozenset({"evaluating", "saving"})
_REASONS = {
    "overlong": "longer than train.max_length",
    "too_long": "too long",
    "no_supervised_tokens": "nothing to learn from",
    "invalid": "not readable",
    "excluded": "left out by data.exclude",
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
_FINISHES = {"stop": "", "length": ", cut at the length limit", "cancelled": ", stopped in the chat"}


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


def phase(event: events.PhaseEvent) -> str:
    """Sentence of a phase, ``loading the model: SmolLM2``; empty for phases that report their own result."""
    if event.name in _SILENT:
        return ""
    return phase_name(event.name) + (f": {safe(event.detail)}" if event.detail else "")


def data(event: events.DataEvent) -> str:
    """Sentence of a data event, ``410 of 412 rows used (dropped: 2 not readable), longest 212 tokens, 33% learned``."""
    line = f"{event.used} of {counted(event.rows, 'row')} used"
    dropped = [f"{count} {_REASONS.get(why) or safe(why.replace('_', ' '))}" for why, count in event.dropped.items()]
    if dropped:
        line += f" (dropped: {', '.join(dropped)})"
    line += f", longest {event.longest} tokens"
    supervised = event.supervised_tokens
    return line + (f", {supervised / event.tokens:.0%} learned" if 0 <= supervised <= event.tokens > 0 else "")


def evaluation(event: events.EvalEvent) -> str:
    """Sentence of an evaluation, ``eval loss 0.455, exact match 0.83 (60 rows)``."""
    line = f"eval loss {format_number(event.loss)}"
    shares = {
        "exact match": event.exact_match,
        "valid JSON": event.valid_json,
        "reward accuracy": event.reward_accuracy,
    }
    line += "".join(f", {name} {format_fixed(share, 2)}" for name, share in shares.items() if share is not None)
    if event.reward_margin is not None:
        line += f", margin {format_number(event.reward_margin)}"
    if event.rows is not None:
        line += f" ({counted(event.rows, 'row')})"
    return line + (f", probe loss {format_number(event.probe_loss)}" if event.probe_loss is not None else "")


def probe(event: events.ProbeEvent) -> str:
    """Sentence of the probe before the first step, ``probe loss 2.31 before the first step``."""
    return f"probe loss {format_number(event.loss)} before the first step"


def ranks(found: Sequence[Rank], strategy: str) -> str:
    """Sentence of the processes of a run, ``2 processes on 2 machines: head (cuda:0), tower (cuda:0)``."""
    return safe(rank_words(found) + (f"; {strategy}" if strategy else ""))


def checkpoint(event: events.CheckpointEvent) -> str:
    """Sentence of a checkpoint, ``checkpoint step-30 (1.2 s, 39 MB)``."""
    return f"checkpoint step-{event.step} ({format_fixed(event.seconds, 1)} s, {size(event.bytes)})"


def governor(event: events.GovernorEvent) -> str:
    """Sentence of a governor action, ``governor: slowed to 60 % to hold 80 °C``."""
    return safe(f"governor: {words.describe(event.action, event.cause, event.value, event.limit, event.duty)}")


def night(event: events.NightEvent) -> str:
    """Sentence of a promise, ``night: done by 08:40 with 0.82 kWh (promised 06:35, 0.80 kWh), 0.31 kWh so far; 08:45 in
    place of 07:00, which cannot be met``."""
    line = words.promised(
        event.finish, event.energy_kwh, event.promised_finish, event.promised_energy_kwh, event.used_kwh
    )
    replaced = words.in_place(event.deadline, event.nearest_deadline, event.energy_limit_kwh, event.nearest_energy_kwh)
    return safe(f"night: {line}" + (f"; {replaced}" if replaced else ""))


def rollback(event: events.RollbackEvent) -> str:
    """Sentence of a rollback, ``back to step-30, without steps 41 to 43: loss 7.13 where about 1.2 was expected; their
    rows: faq.jsonl lines 3 and 9``."""
    steps = f"step {event.first}" if event.first == event.last else f"steps {event.first} to {event.last}"
    line = f"back to step-{event.step}, without {steps}: loss {format_number(event.loss)}"
    if event.expected is not None:
        line += f" where about {format_number(event.expected)} was expected"
    return safe(line + (f"; rows: {event.rows}" if event.rows else ""))


def notice(event: events.NoticeEvent) -> str:
    """Sentence of a notice: the message, then the hint."""
    return safe(_joined(event.message, event.hint))


def sender(name: str) -> str:
    """Sender of a command in words: ``on request`` for the control socket, ``by SIGTERM`` for a signal."""
    return "on request" if name == "socket" else f"by {name}"


def control(event: events.ControlEvent) -> str:
    """Sentence of a command, ``paused on request``, ``step 34 answered a question: 106 tokens``, ``pause on request
    refused: …``.
    """
    who, result = sender(event.sender), event.result
    if event.command == "generate" and (found := _GENERATED.fullmatch(result)):
        source, count, finish = found.groups()
        if finish == "cancelled" and count == "0":
            return "a question was taken back before its answer"
        who = f"step {source[5:]}" if source.startswith("step-") else f"the {source} model"
        line = f"{who} answered a question: {count} {'token' if count == '1' else 'tokens'}"
        return safe(line + _FINISHES.get(finish, f", {finish}"))
    if event.command == "withdraw":
        names = [_ASKED.get(name, name) for name in result.split(", ")]
        return safe(f"taken back {who}: {', '.join(names)}")
    if result.startswith("refused"):
        return safe(f"{_ASKED.get(event.command, event.command)} {who} {result}")
    if event.command == "set" and (values := decode_changes(result)):
        told = "kept from the checkpoint" if event.sender == KEPT else f"changed {who}"
        return safe(f"{told}: {change_words(values)}")
    done = _DONE.get(event.command, event.command)
    return safe(f"{done} {who}" + (f": {result}" if result not in ("", "ok") else ""))


def end(event: events.FinishedEvent) -> str:
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


#: Word for a run with pending requests, by request, the most important first.
_DOING = {
    "stop": "stopping",
    "park": "parking",
    "pause": "pausing",
    "checkpoint": "saving",
    "skip_evaluation": "skipping the evaluation",
    "resume": "resuming",
}
#: Parts of an evaluation, and of a step.
_WITHIN = {
    "micro_batches": "micro-batch",
    "evaluation": "evaluating",
    "answers": "answering held-out rows",
    "samples": "answering samples",
    "probe": "measuring the general probe",
    "checkpoint": "saving a checkpoint",
}
#: Shortest step, in seconds, whose progress is worth a line.
LONG_STEP_SECONDS = 3.0
#: Parts of an evaluation besides the loss, in short.
_BESIDE_LOSS = {"answers": "answers", "samples": "samples", "probe": "probe"}


def doing(pending: Sequence[str]) -> str:
    """Pending requests in one word, ``pausing``; empty without any."""
    return next((word for name, word in _DOING.items() if name in pending), "")


def pending_words(
    pending: Sequence[str], state: RunState, timings: Timings, now: float, *, is_short: bool = False
) -> str:
    """Pending requests: ``pausing after this step (≤ 20 s)``, ``stopping …``; empty without any.

    Args:
        pending: The requests.
        state: State of the run.
        timings: Timings of the run.
        now: Unix seconds.
        is_short: Whether to use the short form ``pausing (≤ 20 s)``.
    """
    word = doing(pending)
    if not word:
        return ""
    is_in_step = state.state == "training" and timings.evaluation is None and timings.phase == "training"
    if not is_in_step or word == _DOING["skip_evaluation"]:
        return f"{word} …"
    left = step_seconds_left(state, timings, now)
    bound = f" (≤ {_whole(left)})" if left is not None else " …" if is_short else ""
    return f"{word}{bound}" if is_short else f"{word} after this step{bound}"


def step_seconds_left(state: RunState, timings: Timings, now: float) -> float | None:
    """Most seconds left of the present step, if it is no slower than the slowest recent step; None if unknown."""
    slowest, began = timings.slowest_step_seconds, state.step_started or timings.anchor
    if slowest is None or began is None:
        return None
    left = slowest - max(now - began, 0.0)
    return left if left > 0 else None


def _whole(seconds: float) -> str:
    """A bound in whole seconds: ``20 s``, ``1m 30s``."""
    return f"{math.ceil(seconds)} s" if seconds <= 59 else format_duration(math.ceil(seconds))


def progress_words(progress: StepProgress | None) -> str:
    """Progress within a step or an evaluation: ``micro-batch 3/8``, ``evaluating 18/80``; empty without any."""
    if progress is None:
        return ""
    name = _WITHIN.get(progress.what, progress.what.replace("_", " "))
    return f"{name} {progress.done}/{progress.total}" if progress.total else name


def phase_count(phase: str, progress: StepProgress | None, done: int | None, total: int | None) -> str:
    """Progress of a phase, to follow its name: ``18/80``, ``probe 19/40``, ``samples 1/3``; empty if it is not counted.

    Args:
        phase: The phase.
        progress: Progress of the run. Parts of an evaluation after the loss have no phase of their own.
        done: Rows done in the phase.
        total: Rows of the phase.
    """
    part = _BESIDE_LOSS.get(progress.what) if progress is not None and phase == EVALUATING else None
    if progress is not None and part is not None:
        return f"{part} {progress.done}/{progress.total}" if progress.total else part
    return f"{done}/{total}" if done is not None and total else ""


def step_progress(state: RunState, timings: Timings, now: float) -> StepProgress | None:
    """Progress within the present step, if it has several micro-batches and takes long; else None."""
    progress, began = state.progress, state.step_started
    if progress is None or progress.what != "micro_batches" or progress.total < 2:
        return None
    seconds = max(timings.seconds_per_step or 0.0, now - began if began is not None else 0.0)
    return progress if seconds >= LONG_STEP_SECONDS else None


def long_progress(state: RunState, timings: Timings, now: float) -> StepProgress | None:
    """Progress within an evaluation, a checkpoint, or a long step; None without any."""
    progress = state.progress
    if progress is not None and progress.what != "micro_batches":
        return progress
    return step_progress(state, timings, now)


def needed_for(event: events.Event) -> str:
    """Why an event of a live run needs the user, as a sentence or clause; empty if it does not.

    A full disk needs the user, and so does an error that has paused the run. Pauses for heat and quiet hours end by
    themselves.
    """
    if isinstance(event, events.GovernorEvent) and (event.action, event.cause) == ("pause", DISK):
        return words.pause_reason(event.cause, event.value, event.limit)
    return event.message if isinstance(event, events.NoticeEvent) and event.level == "error" else ""

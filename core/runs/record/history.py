"""History of a run: the only fold of its events, into totals, curves, log and marks.

A record of a million steps takes tens of seconds to read; a sample of its steps takes milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from itertools import islice
from typing import Any

from core.config.live import CHANGEABLE
from core.hardware.snapshot import Device, Host
from core.runs.record import events, sentences
from core.runs.record.series import Series
from core.runs.record.state import EventTail, Rank, RunState, last_events
from core.runs.record.store import Run
from core.runs.record.timings import RunTotals, Timings, append_bounded, sound, truncate
from core.small_files import open_regular


class Samples:
    """The answers of a run in the order of their steps: the first and the newest."""

    def __init__(self) -> None:
        self.kept: deque[events.SampleEvent] = deque()
        self._characters = 0
        self._first = 0
        self._is_of_start = False

    def begin_start(self) -> None:
        """A worker has started: its answers replace earlier answers of the same steps."""
        self._is_of_start = False

    def add(self, event: events.SampleEvent) -> None:
        """Add an answer; the answers of a step come together."""
        if self.kept and (not self._is_of_start or self.kept[-1].step > event.step):
            self.rewind(event.step)
        self._is_of_start = True
        if not self.kept or self.kept[0].step == event.step:
            self._first += 1
        self.kept.append(event)
        self._characters += _sample_characters(event)
        # The first answers stay, as all others are compared with them.
        while len(self.kept) > SAMPLES or self._characters > SAMPLE_CHARACTERS:
            place = self._first if len(self.kept) > self._first else 0
            self._first -= 0 if place else 1
            self._characters -= _sample_characters(self.kept[place])
            del self.kept[place]

    def rewind(self, step: int) -> None:
        """Forget the answers of steps from ``step`` on: they are being replayed."""
        while self.kept and self.kept[-1].step >= step:
            self._characters -= _sample_characters(self.kept.pop())
        self._first = min(self._first, len(self.kept))


def _sample_characters(event: events.SampleEvent) -> int:
    return len(event.prompt) + len(event.text) + len(event.expected or "")


#: Most samples kept, and most characters of them all.
SAMPLES, SAMPLE_CHARACTERS = 500, 1 << 22
#: Newest log lines kept, and most characters of a line.
LOG_LINES = 5000
LINE_CHARACTERS = 2000
#: Most distinct phases and devices; a run has a handful of each.
NAMES = 32
#: Bytes in a gigabyte, as the meters count.
_GIGABYTE = 1e9
#: Commands that halt a run or let it go on, and the kind of mark that each leaves.
_HALTS = {"pause": "paused", "park": "parked", "resume": "going_on"}
_TAIL_LIMIT, _EVAL_LIMIT = 16 << 20, 4 << 20
#: Bytes from which a record is long: reading it takes more than a second.
LONG_BYTES = 8 << 20
#: Places of a long record at which a step is read, and bytes read at each.
PLACES, PLACE_BYTES = 1500, 2048
#: Phases that recur within one start.
_RECURRING = frozenset({"training", "evaluating", "saving"})


@dataclass
class RunPhase:
    """A phase of the newest start of the run; re-entering it adds to its seconds."""

    name: str
    detail: str = ""
    done: int | None = None
    total: int | None = None
    seconds: float = 0.0
    """Seconds spent in it so far, without pauses, up to the last event."""
    seconds_before: float = 0.0
    """Seconds before it was entered the last time."""


@dataclass(frozen=True)
class LogLine:
    """A log line: Unix seconds, ``info``, ``warning`` or ``error``, and a sentence safe to show."""

    time: float
    level: str
    text: str
    fold: str = ""
    """Noun of the lines that a view shows as one, with the newest's text; empty for a line of its own."""

    @property
    def clock(self) -> str:
        """Local time of day, ``14:37:02``."""
        return sentences.clock(self.time)


@dataclass(frozen=True)
class Mark:
    """Annotation of the chart at a step.

    Its kind is ``warning``, ``error``, ``memory`` (micro-batches made smaller, or layers computed again, for want of
    memory), ``rollback`` (back to this step for a loss spike), ``governor``, ``paused``, ``parked``, ``going_on``
    (after either) or ``resumed`` (a new start).
    """

    step: int
    kind: str
    text: str


@dataclass(eq=False, repr=False)
class RunHistory:
    """The present view of a run; feed it every event in order."""

    starts: int = field(default=0, init=False)
    """Number of times a worker has started on the run."""
    phases: dict[str, RunPhase] = field(default_factory=dict, init=False)
    """Phases of the newest start, in order of first entry."""
    phase: RunPhase | None = field(default=None, init=False)
    """Present phase; None before the first and after the end."""
    phase_seconds: dict[str, float] = field(default_factory=dict, init=False)
    """Seconds per phase over all starts of the run."""
    settings: dict[str, Any] = field(default_factory=dict, init=False)
    """Options of the newest start that differ from the configuration, ``section.key`` to value."""
    ranks: tuple[Rank, ...] = field(default=(), init=False)
    """The processes of the newest start; empty where there is only one."""
    end: events.FinishedEvent | None = field(default=None, init=False)
    """End of the run (also a StoppedEvent or FailedEvent); None while it has not ended, or has been continued."""
    updated: float | None = field(default=None, init=False)
    """Time of the last event that has one, in Unix seconds."""

    # Data and results.
    data: events.DataEvent | None = field(default=None, init=False)
    last_step: events.StepEvent | None = field(default=None, init=False)
    checkpoints: list[events.CheckpointEvent] = field(default_factory=list, init=False)
    timings: Timings = field(default_factory=Timings, init=False)
    """Timings of its steps, evaluations and checkpoints."""
    totals: RunTotals = field(default_factory=RunTotals, init=False)
    """Sums over its steps and starts, and its evaluations."""

    # Curves over steps.
    loss: Series = field(default_factory=Series, init=False)
    grad_norm: Series = field(default_factory=Series, init=False)
    learning_rate: Series = field(default_factory=Series, init=False)
    throughput: Series = field(default_factory=Series, init=False)
    """Tokens per second of each step."""
    eval_loss: Series = field(default_factory=Series, init=False)
    exact_match: Series = field(default_factory=Series, init=False)
    probe_loss: Series = field(default_factory=Series, init=False)
    """Loss on the general probe, from before the first step on."""
    times: Series = field(default_factory=Series, init=False)
    """Unix time at the end of each step."""
    temperature: Series = field(default_factory=Series, init=False)
    """Temperature of the first device in °C, by the last step done; likewise power and memory."""
    power: Series = field(default_factory=Series, init=False)
    """Power of the first device in W."""
    device_memory: Series = field(default_factory=Series, init=False)
    """Memory in use on the first device in GB, by all processes."""

    # The machine.
    devices: list[Device] = field(default_factory=list, init=False)
    devices_read: float | None = field(default=None, init=False)
    """Unix time at which the devices and the machine were read last; None if never."""
    host: Host | None = field(default=None, init=False)
    """The machine around the devices; None in runs of earlier versions."""
    memory: dict[str, events.MemoryEvent] = field(default_factory=dict, init=False)
    """Newest figures of each device's memory, merged from all reports."""
    governor: events.GovernorEvent | None = field(default=None, init=False)
    """Last action of the governor."""
    slowed: events.GovernorEvent | None = field(default=None, init=False)
    """The newest action that slowed the run; None at full speed, and during a pause."""
    night: events.NightEvent | None = field(default=None, init=False)
    """The newest promise of the plan for the night."""

    # Messages.
    notices: list[events.NoticeEvent] = field(default_factory=list, init=False)
    marks: list[Mark] = field(default_factory=list, init=False)
    log: deque[LogLine] = field(default_factory=lambda: deque(maxlen=LOG_LINES), init=False)
    log_count: int = field(default=0, init=False)
    """Number of log lines ever written; those beyond ``log`` have been dropped from its front."""
    skipped: int = field(default=0, init=False)
    """Number of lines that were not events, as counted by the reader."""

    _samples: Samples = field(default_factory=Samples, init=False)
    _is_first_of_start: bool = field(default=True, init=False)
    _stepped_seconds: float = field(default=0.0, init=False)
    """Seconds in steps, replayed ones included, and seconds of work in them."""
    _worked_seconds: float = field(default=0.0, init=False)

    @property
    def samples(self) -> deque[events.SampleEvent]:
        """Answers to the sample questions: the first and the newest."""
        return self._samples.kept

    @property
    def step(self) -> int:
        """Last completed optimizer step; 0 before the first."""
        return self.last_step.step if self.last_step else 0

    @property
    def evals(self) -> list[events.EvalEvent]:
        """Evaluations, without replayed ones; of very many, the newest."""
        return self.totals.evals

    @property
    def best_eval(self) -> events.EvalEvent | None:
        """The evaluation with the lowest held-out loss; the untouched model does not count."""
        found = (event for event in self.evals if event.step > 0 and math.isfinite(event.loss))
        return min(found, key=lambda event: event.loss, default=None)

    @property
    def energy_wh(self) -> float | None:
        """Energy of the devices over all starts, in Wh; None if no device reports it."""
        return self.totals.energy_wh

    @property
    def step_count(self) -> int:
        """Number of optimizer steps done, without replayed steps."""
        return self.totals.steps.count

    @property
    def tokens(self) -> int:
        """Tokens trained on, without padding and replayed steps."""
        return self.totals.tokens or 0

    @property
    def step_seconds(self) -> float:
        """Seconds spent in optimizer steps, without pauses and replayed steps."""
        return self.totals.steps.seconds[-1] if self.totals.steps.seconds else 0.0

    @property
    def work_share(self) -> float:
        """Share of the seconds in steps that was work, and not a rest by the governor, by the duty cycles in its
        events; 1 without rests."""
        return self._worked_seconds / self._stepped_seconds if self._stepped_seconds > 0 else 1.0

    @property
    def paused_seconds(self) -> float:
        """Seconds for which training was paused."""
        return self.totals.steps.paused[-1] if self.totals.steps.paused else 0.0

    @property
    def working_seconds(self) -> float:
        """Seconds of work over all starts (:class:`core.runs.record.timings.WorkingTime`)."""
        return self.totals.work.seconds

    def end_reason(self, state: RunState) -> str:
        """Why the run has ended, by its state or else by its last event; empty if all steps were done."""
        reason = state.reason or (self.end.reason if self.end is not None else "")
        return "" if reason == sentences.ALL_DONE else reason

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens without padding over the seconds of all steps; None before the first."""
        return self.totals.steps.rate

    def phase_elapsed(self, now: float) -> float:
        """Seconds since the present phase was entered, at the Unix time ``now``, without pauses; 0 if there is none."""
        if self.phase is None or self.updated is None:
            return 0.0
        since = max(now - self.updated, 0.0) if self.timings.paused_since is None else 0.0
        return self.phase.seconds - self.phase.seconds_before + since

    def log_since(self, count: int) -> list[LogLine]:
        """Lines after the first ``count`` ever written (see ``log_count``), as far as they are kept."""
        fresh = min(self.log_count - count, len(self.log))
        return list(islice(self.log, len(self.log) - fresh, None)) if fresh > 0 else []

    def apply(self, event: events.Event) -> None:
        """Apply one event."""
        was_paused = self.timings.paused_since is not None
        self.timings.apply(event)
        self.totals.apply(event)
        starting = isinstance(event, events.PhaseEvent) and self._is_new_start(event)
        if self.phase is not None and self.updated is not None and not starting and not was_paused:
            # The time between a killed worker and the next one belongs to no phase.
            passed = sound(event.t - self.updated)
            self.phase.seconds += passed
            self.phase_seconds[self.phase.name] = self.phase_seconds.get(self.phase.name, 0.0) + passed
        if starting:
            self._begin_start(event.t)
        if not math.isnan(event.t):
            self.updated = event.t
        if handler := _HANDLERS.get(type(event)):
            handler(self, event)

    def _is_new_start(self, event: events.PhaseEvent) -> bool:
        """True if a worker has started: the first phase comes again, or the first event after an end is a phase."""
        if self.phase is None:
            return not self.phases or self.end is not None
        return event.name not in _RECURRING and event.name == next(iter(self.phases)) and event.name != self.phase.name

    def _begin_start(self, moment: float) -> None:
        self.starts += 1
        self.phases, self.phase, self.end, self.settings = {}, None, None, {}
        self.slowed = self.night = None
        self.ranks = ()
        self._is_first_of_start = True
        self._samples.begin_start()
        if self.starts > 1:
            self._write(moment, "info", f"continued after step {self.step}" if self.step else "started again")

    def _apply_phase(self, event: events.PhaseEvent) -> None:
        if event.name not in self.phase_seconds and len(self.phase_seconds) >= NAMES:
            return
        known = self.phases.get(event.name)
        if self.phase is None or self.phase is not known:
            if known is None and (line := sentences.phase(event)):
                self._write(event.t, "info", line)
            self.phase = self.phases.setdefault(event.name, RunPhase(event.name))
            self.phase.seconds_before = self.phase.seconds
            self.phase_seconds.setdefault(event.name, 0.0)
        self.phase.detail, self.phase.done, self.phase.total = sentences.safe(event.detail), event.done, event.total

    def _apply_data(self, event: events.DataEvent) -> None:
        self.data = event
        self._write(event.t, "info", sentences.data(event))

    def _apply_memory(self, event: events.MemoryEvent) -> None:
        if event.device not in self.memory and len(self.memory) >= NAMES:
            return
        if (before := self.memory.get(event.device)) is not None:
            event = dataclasses.replace(
                before, **{key: value for key, value in vars(event).items() if value is not None}
            )
        self.memory[event.device] = event

    def _apply_step(self, event: events.StepEvent) -> None:
        if self.last_step is not None and event.step <= self.last_step.step:
            self._rewind(event.step)
        was_finite = self.last_step is None or math.isfinite(self.last_step.loss)
        self.last_step = event
        if self._is_first_of_start:
            self._is_first_of_start = False
            if self.starts > 1:
                append_bounded(self.marks, Mark(event.step, "resumed", "continued here"))
        self.loss.append(event.step, event.loss)
        self.grad_norm.append(event.step, event.grad_norm)
        self.learning_rate.append(event.step, event.lr)
        self.throughput.append(event.step, event.tokens_per_second)
        self.times.append(event.step, event.t)
        duty = self.slowed.duty if self.slowed is not None else None
        self._stepped_seconds += sound(event.seconds)
        self._worked_seconds += sound(event.seconds) * (duty if duty is not None and 0 < duty <= 1 else 1.0)
        if was_finite and not math.isfinite(event.loss):
            self._write(event.t, "error", f"the loss is not a finite number at step {event.step}")

    def _rewind(self, step: int) -> None:
        """Forget the reports of steps from ``step`` on: they are being replayed."""
        for curve in vars(self).values():
            if isinstance(curve, Series):
                curve.truncate(step)
        for items in (self.checkpoints, self.marks):
            truncate(items, step)
        self._samples.rewind(step)

    def _apply_eval(self, event: events.EvalEvent) -> None:
        self.eval_loss.append(event.step, event.loss)
        if event.exact_match is not None:
            self.exact_match.append(event.step, event.exact_match)
        if event.probe_loss is not None:
            self.probe_loss.append(event.step, event.probe_loss)
        self._write(event.t, "info", sentences.evaluation(event))

    def _apply_probe(self, event: events.ProbeEvent) -> None:
        self.probe_loss.append(event.step, event.loss)
        self._write(event.t, "info", sentences.probe(event))

    def _apply_hardware(self, event: events.HardwareEvent) -> None:
        self.devices, self.devices_read = Device.all_from(event.devices), self.updated
        self.host = Host.from_dict(event.host)
        self._sample_device(self.devices[0] if self.devices else None)

    def _sample_device(self, device: Device | None) -> None:
        """Add a measurement of the first device to its curves; missing or old values are gaps in them."""
        read = device if device is not None and not device.problem and device.age_s is None else None
        used = read.memory_used if read is not None else None
        for series, value in (
            (self.temperature, read.temperature_c if read is not None else None),
            (self.power, read.power_w if read is not None else None),
            (self.device_memory, used / _GIGABYTE if used is not None else None),
        ):
            # A gap needs an earlier value.
            if value is not None or len(series):
                series.gather(self.step, math.nan if value is None else value)

    def _apply_ranks(self, event: events.RanksEvent) -> None:
        self.ranks = Rank.all_from(event.ranks)
        self._write(event.t, "info", sentences.ranks(self.ranks, event.strategy))

    def _apply_checkpoint(self, event: events.CheckpointEvent) -> None:
        truncate(self.checkpoints, event.step)
        append_bounded(self.checkpoints, event)
        self._write(event.t, "info", sentences.checkpoint(event), fold="checkpoint")

    def _apply_governor(self, event: events.GovernorEvent) -> None:
        self.governor = event
        if event.action in ("slow", "full", "pause"):
            self.slowed = event if event.action == "slow" else None
        line = sentences.governor(event)
        append_bounded(self.marks, Mark(self.step, "governor", line.removeprefix("governor: ")))
        self._write(event.t, "warning" if event.action in ("pause", "checkpoint", "stop") else "info", line)

    def _apply_night(self, event: events.NightEvent) -> None:
        self.night = event
        self._write(event.t, "info", sentences.night(event))

    def _apply_rollback(self, event: events.RollbackEvent) -> None:
        # The undone steps go at once: their marks would follow the mark of the rollback.
        self._rewind(event.step + 1)
        line = sentences.rollback(event)
        append_bounded(self.marks, Mark(event.step, "rollback", line))
        self._write(event.t, "warning", line)

    def _apply_notice(self, event: events.NoticeEvent) -> None:
        append_bounded(self.notices, event)
        line = sentences.notice(event)
        if event.level in ("warning", "error"):
            kind = "memory" if event.code.startswith("memory_") else event.level
            append_bounded(self.marks, Mark(self.step, kind, line))
        self._write(event.t, event.level if event.level in ("warning", "error") else "info", line)

    def _apply_control(self, event: events.ControlEvent) -> None:
        if event.command == "set" and not event.result.startswith("refused"):
            self.settings |= {
                name: value for name, value in sentences.decode_changes(event.result).items() if name in CHANGEABLE
            }
        line = sentences.control(event)
        if event.command in _HALTS and not event.result.startswith("refused"):
            append_bounded(self.marks, Mark(self.step, _HALTS[event.command], line))
        self._write(event.t, "info", line)

    def _apply_end(self, event: events.FinishedEvent) -> None:
        self.end, self.phase = event, None
        level = {"failed": "error", "stopped": "warning"}.get(event.type, "info")
        self._write(event.t, level, sentences.end(event))

    def _write(self, moment: float, level: str, text: str, *, fold: str = "") -> None:
        self.log.append(LogLine(moment, level, text[:LINE_CHARACTERS], fold))
        self.log_count += 1


#: Handlers by kind of event.
_HANDLERS: Mapping[type[events.Event], Callable[[RunHistory, Any], None]] = {
    events.PhaseEvent: RunHistory._apply_phase,
    events.DataEvent: RunHistory._apply_data,
    events.MemoryEvent: RunHistory._apply_memory,
    events.StepEvent: RunHistory._apply_step,
    events.EvalEvent: RunHistory._apply_eval,
    events.ProbeEvent: RunHistory._apply_probe,
    events.SampleEvent: lambda history, event: history._samples.add(event),
    events.HardwareEvent: RunHistory._apply_hardware,
    events.RanksEvent: RunHistory._apply_ranks,
    events.CheckpointEvent: RunHistory._apply_checkpoint,
    events.GovernorEvent: RunHistory._apply_governor,
    events.NightEvent: RunHistory._apply_night,
    events.RollbackEvent: RunHistory._apply_rollback,
    events.NoticeEvent: RunHistory._apply_notice,
    events.ControlEvent: RunHistory._apply_control,
    events.FinishedEvent: RunHistory._apply_end,
    events.StoppedEvent: RunHistory._apply_end,
    events.FailedEvent: RunHistory._apply_end,
}


def read_history(run: Run) -> RunHistory:
    """The history of a run from its file; empty if there is no file yet."""
    history, tail = RunHistory(), EventTail(run.events_path)
    for batch in tail.batches():
        for event in batch:
            history.apply(event)
    history.skipped = tail.skipped
    return history


def last_evaluation(run: Run) -> events.EvalEvent | None:
    """The last evaluation that a run has reported, searched from the end of its file; None if there is none.

    At most the last 4 MB are searched.
    """
    return next(last_events(run.events_path, events.EvalEvent, _EVAL_LIMIT), None)


def last_step(run: Run) -> events.StepEvent | None:
    """The last step that a run has reported, searched from the end of its file; None if there is none.

    At most the last 16 MB are searched.
    """
    return next(last_events(run.events_path, events.StepEvent, _TAIL_LIMIT), None)


def is_long(run: Run) -> bool:
    """True if a run's record takes long to read."""
    try:
        return os.stat(run.events_path).st_size > LONG_BYTES
    except OSError:
        return False


def read_glimpse(run: Run) -> RunHistory | None:
    """History of a long record in milliseconds: the loss of a sample of its steps, the newest step, the last evaluation
    and the end, but no sums. None if the record is short or unreadable, or the sample has no steps.

    Of replayed steps, the last ones in the record are kept.
    """
    history = RunHistory()
    try:
        with open_regular(run.events_path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= LONG_BYTES:
                return None
            for number in range(PLACES):
                place = (size - PLACE_BYTES) * number // (PLACES - 1)
                if (step := _step_near(file, place)) is not None:
                    history.loss.append(step.step, step.loss)
                    history.last_step = step
    except OSError:
        return None
    if history.last_step is None:
        return None
    if (evaluated := last_evaluation(run)) is not None:
        history.evals.append(evaluated)
    history.end = next(last_events(run.events_path, events.FinishedEvent), None)
    return history


def _step_near(file: FileIO, place: int) -> events.StepEvent | None:
    """The first step that begins in the piece of the file at an offset; None without one."""
    lines = os.pread(file.fileno(), min(PLACE_BYTES, events.LINE_LIMIT), place).split(b"\n")
    # The first piece is the rest of a line, the last one the beginning of another.
    return next((step for line in lines[1:-1] if (step := events.decode_step(line)) is not None), None)

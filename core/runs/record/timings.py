"""Timings and totals of a run, folded from its events: steps, evaluations, checkpoints, work and energy."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from core.runs.record import events

T = TypeVar("T")
#: Least number of newest events kept of a kind; there may be twice as many.
KEPT = 500

#: Newest steps that can be rolled back one by one.
REWOUND_STEPS = 1 << 15
_LONGEST_SECONDS = 3e9


def sound(seconds: float) -> float:
    """A plausible duration: not negative (a clock may have been set back), and less than a century."""
    return seconds if 0 < seconds < _LONGEST_SECONDS else 0.0


@dataclass
class StepTotals:
    """Cumulative sums at each of the newest steps, so that replayed steps can be rolled back.

    If a run goes back further than is kept, they start from zero.
    """

    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    paused: list[float] = field(default_factory=list)
    dropped: int = 0
    """Number of older steps, which have been dropped."""

    def append(self, step: int, tokens: int, seconds: float, paused: float) -> None:
        """Add a step: its tokens without padding, its seconds, and the seconds of pause before it."""
        self.steps.append(step)
        self.tokens.append((self.tokens[-1] if self.tokens else 0) + max(tokens, 0))
        self.seconds.append((self.seconds[-1] if self.seconds else 0.0) + sound(seconds))
        self.paused.append((self.paused[-1] if self.paused else 0.0) + sound(paused))
        if len(self.steps) >= 2 * REWOUND_STEPS:
            self.dropped += len(self.steps) - REWOUND_STEPS
            for sums in (self.steps, self.tokens, self.seconds, self.paused):
                del sums[:-REWOUND_STEPS]

    @property
    def count(self) -> int:
        """Number of steps."""
        return self.dropped + len(self.steps)

    def truncate(self, step: int) -> None:
        """Roll back the steps from ``step`` on."""
        keep = bisect_left(self.steps, step)
        for sums in (self.steps, self.tokens, self.seconds, self.paused):
            del sums[keep:]
        self.dropped = self.dropped if keep else 0

    @property
    def rate(self) -> float | None:
        """Tokens over the seconds of all steps; None before the first."""
        return self.tokens[-1] / self.seconds[-1] if self.seconds and self.seconds[-1] > 0 else None


#: First phase of a worker.
_FIRST_PHASE = "importing"


class WorkingTime:
    """Working time of a run, without pauses and the time between workers, by its events in order.

    A pause counts as long as its requests show, or as the next step reports, whichever is longer: some pauses have no
    request, and the last pause may have no next step.
    """

    def __init__(self) -> None:
        self.starts = 0
        """Number of times that a worker has started."""
        self._last: float | None = None
        self._phase = ""
        self._worked = 0.0
        self._paused = 0.0
        self._pausing = 0.0
        self._pausers: set[str] = set()
        self._is_over = False

    @property
    def seconds(self) -> float:
        """Seconds of work up to the last event."""
        return max(self._worked - self._paused - self._pausing, 0.0)

    @property
    def has_begun(self) -> bool:
        """True if there was an event with a time."""
        return self._last is not None

    def apply(self, event: events.Event) -> None:
        """Apply an event that is no step; for a step, :meth:`advance` and :meth:`settle`."""
        self.advance(event.t, event.name if isinstance(event, events.PhaseEvent) else "")
        if isinstance(event, events.GovernorEvent) and event.action in ("pause", "resume"):
            self._pause("governor", is_on=event.action == "pause")
        elif isinstance(event, events.ControlEvent) and event.command in ("pause", "park", "resume"):
            if not event.result.startswith("refused"):
                self._pause("user", is_on=event.command != "resume")
        elif isinstance(event, events.FinishedEvent):
            self._is_over = True

    def advance(self, time: float, phase: str = "") -> None:
        """Apply the time of an event, and the phase that it reports; empty for an event of another type."""
        # A worker reports its first phase repeatedly, with progress.
        if phase and (self._is_over or (phase == _FIRST_PHASE and self._phase != _FIRST_PHASE)):
            self.settle(0.0)
            self.starts += 1
            self._is_over = False
            self._pausers.clear()
        elif self._last is not None and not self._is_over:
            passed = sound(time - self._last)
            self._worked += passed
            self._pausing += passed if self._pausers else 0.0
        self._phase = phase or self._phase
        self._last = time if not math.isnan(time) else self._last

    def _pause(self, who: str, *, is_on: bool) -> None:
        """Apply the beginning or the end of a pause; pauses of the user and of the governor end separately."""
        if is_on:
            self._pausers.add(who)
        else:
            self._pausers.discard(who)

    def settle(self, paused: float) -> None:
        """Apply the seconds of pause since the step before, as a step reports them."""
        self._paused += max(sound(paused), self._pausing)
        self._pausing = 0.0


class RunTotals:
    """Totals of a run: steps, work, energy and evaluations, replayed ones once. Feed it every event in order."""

    def __init__(self) -> None:
        self.steps = StepTotals()
        self.work = WorkingTime()
        self.evals: list[events.EvalEvent] = []
        self.energy_wh: float | None = None
        """Energy over all starts; None if no device reports it."""
        self._energy_before = 0.0
        self._starts = 0
        self._dropped_best: events.EvalEvent | None = None

    def apply(self, event: events.Event) -> None:
        """Apply one event."""
        if isinstance(event, events.StepEvent):
            self.work.advance(event.t)
            self.work.settle(event.paused_seconds)
            if self.steps.steps and event.step <= self.steps.steps[-1]:
                self._rewind(event.step)
            self.steps.append(event.step, event.tokens, event.seconds, event.paused_seconds)
            return
        self.work.apply(event)
        if self.work.starts != self._starts:
            # A worker counts its own energy.
            self._starts, self._energy_before = self.work.starts, self.energy_wh or 0.0
        if isinstance(event, events.HardwareEvent):
            if event.energy_wh is not None and math.isfinite(event.energy_wh):
                self.energy_wh = self._energy_before + event.energy_wh
        elif isinstance(event, events.EvalEvent):
            truncate(self.evals, event.step)
            if len(self.evals) >= 2 * KEPT:
                self._dropped_best = _least([self._dropped_best, *self.evals[: 1 - KEPT]])
            append_bounded(self.evals, event)
        elif isinstance(event, events.RollbackEvent):
            self._rewind(event.step + 1)

    def _rewind(self, step: int) -> None:
        """Undo the steps from ``step`` on."""
        self.steps.truncate(step)
        truncate(self.evals, step)

    @property
    def tokens(self) -> int | None:
        """Tokens trained on, without padding; None before the first step."""
        return self.steps.tokens[-1] if self.steps.tokens else None

    @property
    def best(self) -> events.EvalEvent | None:
        """Evaluation with the least finite loss; None without one."""
        return _least([self._dropped_best, *self.evals])


def _least(evals: Iterable[events.EvalEvent | None]) -> events.EvalEvent | None:
    known = [event for event in evals if event is not None and math.isfinite(event.loss)]
    return min(known, key=lambda event: event.loss, default=None)


def append_bounded(items: list[T], item: T) -> None:
    """Append an item, and drop the oldest if there are many."""
    items.append(item)
    if len(items) > 2 * KEPT:
        del items[:-KEPT]


def truncate(items: list[Any], step: int) -> None:
    """Drop items of the steps from ``step`` on; steps are ascending."""
    while items and items[-1].step >= step:
        items.pop()


#: Newest steps whose pace counts: at least so many, and over so many seconds, but no more than are kept.
RECENT_STEPS, RECENT_SECONDS, MOST_STEPS = 16, 60.0, 1024
#: Newest evaluations and checkpoints that count.
RECENT = 4
#: A step is an outlier from this multiple of the median on, to which it is cut.
OUTLIER = 3.0
#: Relative spread of the tokens per step from which the pace is counted per token.
VARIED = 0.08
#: Plausible numbers of steps in an epoch.
_FEWEST_STEPS, _MOST_STEPS = 1e-6, 1e12
#: Phase in which the model is measured, and the parts that its progress names.
EVALUATING, PARTS = "evaluating", ("loss", "answers", "probe", "samples")
#: Least share of a part of an evaluation that shows its speed.
_WARM_SHARE = 0.25
#: Events that may come during any activity.
_BESIDE = (events.HardwareEvent, events.MemoryEvent, events.NoticeEvent)


@dataclass(frozen=True)
class StepTiming:
    """Duration of one optimizer step."""

    tokens: int
    seconds: float
    between: float | None
    """Seconds from the step before to the beginning of this one; None if something else was done in between."""


@dataclass
class EvaluationTiming:
    """An evaluation: the loss on held-out rows, answers to them, and sample answers."""

    step: int
    began: float
    paused: float = 0.0
    """Seconds of pause in it, and of checkpoints."""
    part: str = ""
    """The part under way, of :data:`PARTS`."""
    part_began: float = 0.0
    done: int = 0
    total: int = 0
    at: float = 0.0
    """Time of the newest progress."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each part that is over."""
    measured: bool = False
    """True if it has given a result."""
    warm: dict[str, float] = field(default_factory=dict)
    """As :attr:`Timings.warm`."""
    _first: tuple[int, float] = (0, 0.0)

    def progress(self, event: events.PhaseEvent) -> None:
        """Take in a report of progress."""
        if event.detail not in PARTS or event.total is None or event.done is None:
            return
        if event.detail != self.part:
            began = self.part_began or self.began
            if self.part:
                self.seconds[self.part] = sound(self.at - began)
                began = self.at
            self.part, self.part_began, self._first = event.detail, began, (0, 0.0)
        self.done, self.total, self.at = event.done, event.total, event.t
        rows, since = self._first
        if not rows:
            self._first = event.done, event.t
        elif event.done - rows >= _WARM_SHARE * event.total:
            self.warm[event.detail] = sound(event.t - since) * event.total / (event.done - rows)

    def part_seconds(self, part: str) -> float | None:
        """Seconds of a part that is over; None for others."""
        if part == self.part and self.done == self.total > 0:
            return sound(self.at - (self.part_began or self.began))
        return self.seconds.get(part)

    def close(self, moment: float) -> float:
        """End it; returns its seconds without pauses."""
        if self.part:
            self.seconds[self.part] = sound(moment - (self.part_began or self.began))
        return sound(moment - self.began - self.paused)


class Timings:
    """The timings of a run; feed it every event in order. Earlier starts of the run still count."""

    def __init__(self) -> None:
        self.data: events.DataEvent | None = None
        self.step = 0
        """Last completed optimizer step."""
        self.steps_done = 0
        """Steps whose timing is known, over all starts."""
        self.steps_per_epoch: float | None = None
        self.evaluation: EvaluationTiming | None = None
        """The evaluation under way."""
        self.evaluated_step: int | None = None
        """Step of the newest evaluation that is over."""
        self.warm: dict[str, float] = {}
        """Seconds of a part of an evaluation at the speed after its first batch, which warms the machine up."""
        self.saved_step: int | None = None
        """Step of the newest checkpoint."""
        self.phase = ""
        self.detail = ""
        """Present phase and its detail."""
        self.anchor: float | None = None
        """Begin of the present activity in Unix seconds: a step, an evaluation, saving."""
        self._pausers: set[str] = set()
        self.paused_since: float | None = None
        """Begin of the present pause in Unix seconds; None without one."""
        self._steps: deque[StepTiming] = deque(maxlen=MOST_STEPS)
        self._evaluations: deque[tuple[float, dict[str, float]]] = deque(maxlen=RECENT)
        self._checkpoints: deque[float] = deque(maxlen=RECENT)
        self._measured_step: int | None = None
        self._warm_up: StepTiming | None = None
        self._is_first = True
        self._last_step_at: float | None = None

    # Durations.

    @property
    def evaluation_seconds(self) -> float | None:
        """Seconds of the newest evaluation, as answers get shorter in training; None before the first."""
        return self._evaluations[-1][0] if self._evaluations else None

    @property
    def part_seconds(self) -> dict[str, float]:
        """Seconds of each part of the newest evaluation."""
        return self._evaluations[-1][1] if self._evaluations else {}

    @property
    def is_only_base_measured(self) -> bool:
        """True if the newest evaluation was of the untouched model."""
        return bool(self._evaluations) and self._measured_step == 0

    @property
    def checkpoint_seconds(self) -> float | None:
        """Seconds of a checkpoint: the shorter of the last two, as a disk may be busy; None before the first."""
        return min(list(self._checkpoints)[-2:], default=None)

    @property
    def seconds_per_step(self) -> float | None:
        """Expected seconds of a future step, with the gap before it; None before the first.

        If the tokens of steps vary, a pace per token is applied to the mean step of the data.
        """
        steps = self._recent()
        if not steps:
            return None
        between = [step.between for step in steps if step.between is not None]
        return self._mean_seconds(steps) + (_median(between) if between else 0.0)

    @property
    def seconds_per_token(self) -> float | None:
        """Seconds of training per token, without padding; None before the first step."""
        steps = self._recent()
        tokens = sum(step.tokens for step in steps)
        return sum(step.seconds for step in steps) / tokens if tokens > 0 else None

    @property
    def slowest_step_seconds(self) -> float | None:
        """Seconds of the slowest of the recent steps; None before the first."""
        return max((step.seconds for step in self._recent()), default=None)

    def _recent(self) -> list[StepTiming]:
        """The steps whose pace counts; the first step of a start, which warms up, only without others."""
        if not self._steps:
            return [self._warm_up] if self._warm_up is not None else []
        recent: list[StepTiming] = []
        seconds = 0.0
        for step in reversed(self._steps):
            if len(recent) >= RECENT_STEPS and seconds > RECENT_SECONDS:
                break
            recent.append(step)
            seconds += step.seconds
        return recent

    def _mean_seconds(self, steps: list[StepTiming]) -> float:
        tokens = [step.tokens for step in steps]
        mean = sum(tokens) / len(tokens)
        spread = math.sqrt(sum((count - mean) ** 2 for count in tokens) / len(tokens))
        is_varied = mean > 0 and spread > VARIED * mean
        if not is_varied or min(tokens) < 1:
            return _steady([step.seconds for step in steps])
        rates = [step.seconds / step.tokens for step in steps]
        most = OUTLIER * _median(rates)
        pace = sum(min(rate, most) * step.tokens for rate, step in zip(rates, steps, strict=True)) / sum(tokens)
        return pace * self._tokens_per_step(mean)

    def _tokens_per_step(self, fallback: float) -> float:
        if self.data is None or not self.steps_per_epoch or self.data.tokens < 1:
            return fallback
        return self.data.tokens / self.steps_per_epoch

    # Events.

    def apply(self, event: events.Event) -> None:
        """Take in one event."""
        if math.isnan(event.t):
            return
        if isinstance(event, events.PhaseEvent):
            self._apply_phase(event)
        elif isinstance(event, events.StepEvent):
            self._apply_step(event)
        elif isinstance(event, events.EvalEvent):
            self._apply_eval(event)
        elif isinstance(event, events.CheckpointEvent):
            self._apply_checkpoint(event)
        elif isinstance(event, events.ControlEvent):
            self._apply_control(event)
        elif isinstance(event, events.GovernorEvent) and event.action in ("pause", "resume"):
            self._apply_pause("governor", event.t, is_on=event.action == "pause")
        elif isinstance(event, events.DataEvent):
            self.data = event
        elif isinstance(event, events.FinishedEvent):
            self._close_evaluation(event.t)
            self.phase, self.anchor, self.paused_since = "", None, None
            self._pausers.clear()
        if not isinstance(event, (*_BESIDE, events.StepEvent)):
            self._last_step_at = None

    def _apply_phase(self, event: events.PhaseEvent) -> None:
        is_evaluating = event.name == EVALUATING
        if event.name == self.phase and (is_evaluating or event.detail == self.detail):
            if self.evaluation is not None:
                self.evaluation.progress(event)
                self.warm |= self.evaluation.warm
            return
        self._close_evaluation(event.t)
        if event.name == "importing":
            self._is_first, self.paused_since = True, None
            self._pausers.clear()
        self.phase, self.detail, self.anchor = event.name, event.detail, event.t
        if event.name == "training" and event.done is not None:
            self.step = event.done  # a continued run may begin before the last reported step
        if is_evaluating:
            self.evaluation = EvaluationTiming(self.step, event.t)
            self.evaluation.progress(event)

    def _close_evaluation(self, moment: float) -> None:
        current, self.evaluation = self.evaluation, None
        if current is None:
            return
        self.evaluated_step = current.step
        seconds = current.close(moment)
        # An evaluation that was cut short says nothing about the next.
        if current.measured or (current.part == "samples" and current.done == current.total):
            self._evaluations.append((seconds, current.seconds))
            self._measured_step = current.step

    def _apply_step(self, event: events.StepEvent) -> None:
        seconds = sound(event.seconds)
        between = event.t - self._last_step_at - seconds if self._last_step_at is not None else None
        between = min(max(between, 0.0), seconds) if between is not None else None
        timing = StepTiming(event.tokens, seconds, between)
        if self._is_first:
            self._warm_up, self._is_first = timing, False
        else:
            self._steps.append(timing)
        self.steps_done += 1
        self.step = event.step
        if event.epoch > 0 and _FEWEST_STEPS < event.step / event.epoch < _MOST_STEPS:
            self.steps_per_epoch = event.step / event.epoch
        if self.evaluated_step is not None and self.evaluated_step >= event.step:
            self.evaluated_step = None  # the step is done again
        if self.saved_step is not None and self.saved_step >= event.step:
            self.saved_step = None
        self._last_step_at = self.anchor = event.t

    def _apply_eval(self, event: events.EvalEvent) -> None:
        if self.evaluation is None:  # older runs, and runs of other writers, have no phase event
            self._evaluations.append((sound(event.seconds), {}))
            self._measured_step = event.step
            self.evaluated_step, self.anchor = event.step, event.t
        else:
            self.evaluation.measured = True

    def _apply_checkpoint(self, event: events.CheckpointEvent) -> None:
        self._checkpoints.append(sound(event.seconds))
        self.saved_step = event.step
        if self.evaluation is not None:
            self.evaluation.paused += sound(event.seconds)
        else:
            self.anchor = event.t

    def _apply_control(self, event: events.ControlEvent) -> None:
        if event.command in ("pause", "park", "resume") and event.result == "ok":
            self._apply_pause("user", event.t, is_on=event.command != "resume")
        elif event.command == "skip_evaluation" and event.result == "ok" and self.evaluation is not None:
            self.evaluation.measured = False
            self.evaluation.part = ""

    def _apply_pause(self, who: str, moment: float, *, is_on: bool) -> None:
        """Apply a pause or resumption by the user or the governor; a pause lasts until both have resumed."""
        if is_on:
            self._pausers.add(who)
            self.paused_since = moment if self.paused_since is None else self.paused_since
            return
        self._pausers.discard(who)
        if self._pausers or self.paused_since is None:
            return
        paused = sound(moment - self.paused_since)
        self.paused_since = None
        if self.evaluation is not None:
            self.evaluation.paused += paused
        if self.anchor is not None:
            self.anchor = min(self.anchor + paused, moment)


def _steady(seconds: list[float]) -> float:
    """Mean of durations, outliers cut."""
    most = OUTLIER * _median(seconds)
    return sum(min(value, most) for value in seconds) / len(seconds)


def _median(values: Iterable[float]) -> float:
    # Not statistics.median, whose imports would delay the first screen.
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

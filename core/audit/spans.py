"""Spans of a run: the intervals between its checkpoints, each with the events for executing it again.

The record of a run that was killed, continued or rolled back has some steps more than once. Only steps that led to the
last step count: from the end, each start is traced to the checkpoint it continued from.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal

from core.config.live import TRAINING
from core.runs.record.events import (
    CheckpointEvent,
    ControlEvent,
    EvalEvent,
    Event,
    FinishedEvent,
    NoticeEvent,
    PhaseEvent,
    ProbeEvent,
    RanksEvent,
    RollbackEvent,
    SampleEvent,
    StepEvent,
    decode_event,
    encode_event,
)
from core.runs.record.sentences import KEPT, decode_changes
from core.runs.record.state import Rank

#: Events that training writes, and that a replay reproduces.
TOLD = (StepEvent, EvalEvent, ProbeEvent, SampleEvent, CheckpointEvent)
#: Notices of a step that was split after running out of memory; a replay splits the same step.
SHORTAGES = ("memory_weights", "memory_cut", "memory_checkpointing", "memory_offload")
#: Notices of changes for lack of memory or disk space that a replay cannot reproduce.
_OTHERWISE = {
    "evaluation_skipped": "an evaluation was left out for want of memory",
    "memory_evaluation": "memory ran out in an evaluation",
    "memory_answers": "memory ran out in an evaluation",
    "memory_probe": "memory ran out in the general probe",
    "memory_reference": "memory ran out in measuring the reference",
    "checkpoint_failed": "a checkpoint could not be written",
    "checkpoint_postponed": "a checkpoint was postponed for want of memory",
}
_RAN_OUT = re.compile(r"Memory ran out at (step \d+|the rehearsal)")
#: Notice of a start that has chosen to shard the weights.
_SHARED_OUT = "strategy"


@dataclass(frozen=True)
class Team:
    """The processes of a start, as far as its results depend on them.

    Args:
        count: Number of processes on all machines.
        strategy: Value of ``distributed.strategy``; empty for one process.
        machines: Number of machines.
        has_cards: Whether any of them trained on a card.
    """

    count: int = 1
    strategy: str = ""
    machines: int = 1
    has_cards: bool = False

    @property
    def is_several(self) -> bool:
        """True for more than one process."""
        return self.count > 1


#: The only process of a start.
ALONE = Team()


@dataclass(frozen=True)
class Span:
    """An interval of training between two checkpoints.

    Args:
        begin: Step of the checkpoint at its beginning; 0 for the untouched base.
        end: Step of the checkpoint at its end.
        script: Events of the training and commands that changed it, in order, including the checkpoint at its end.
        rolled_back: Whether it begins with a rollback for lack of memory, after which activations are recomputed.
        left_out: Steps that are left out, if it begins with a rollback for a loss spike.
        rollbacks: Number of these rollbacks so far.
        changes: Options in force at its beginning that the checkpoint does not have.
        team: The processes that trained it.
        obstacle: Why it cannot be executed again, as the rest of a sentence; empty if it can.
    """

    begin: int
    end: int
    script: tuple[Event, ...]
    rolled_back: bool = False
    left_out: tuple[int, ...] = ()
    rollbacks: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    team: Team = ALONE
    obstacle: str = ""


@dataclass(frozen=True)
class _Spiked:
    """Steps that a run leaves out for loss spikes, as in its checkpoints."""

    left_out: frozenset[int] = frozenset()
    rollbacks: int = 0

    def after(self, event: RollbackEvent) -> _Spiked:
        """The same after one more rollback."""
        return _Spiked(self.left_out | set(range(event.first, event.last + 1)), self.rollbacks + 1)


@dataclass
class _Segment:
    """Events from a start of the worker, or a rollback, to the next one.

    Args:
        kind: Its beginning: a start, a rollback for lack of memory, or a rollback for a loss spike.
        begin: The step it continued from; None if it did no step.
        spiked: Steps left out at its beginning.
        team: The processes of its start.
        events: The events.
    """

    kind: Literal["start", "memory", "spike"]
    begin: int | None = None
    spiked: _Spiked = _Spiked()
    team: Team = ALONE
    events: list[Event] = field(default_factory=list)

    @property
    def is_rollback(self) -> bool:
        """True if it begins with a rollback."""
        return self.kind != "start"

    def up_to(self, step: int) -> _Segment | None:
        """The part up to the checkpoint of a step; None without that checkpoint."""
        for place in range(len(self.events) - 1, -1, -1):
            event = self.events[place]
            if isinstance(event, CheckpointEvent) and event.step == step:
                return replace(self, events=self.events[: place + 1])
        return None


def spans_of(events: Iterable[Event]) -> list[Span]:
    """The spans that led to the last step of a run, in order.

    Args:
        events: All events of the run.
    """
    segments = _segments(events)
    found: list[Span] = []
    wanted: int | None = None
    for place in range(len(segments) - 1, -1, -1):
        segment = segments[place]
        if wanted is not None:
            cut = segment.up_to(wanted)
            if cut is None:
                continue
            segment = cut
        begin = segment.begin
        if begin is None:
            continue
        changes = _changes_before(segments[:place], begin) if segment.is_rollback else {}
        found = [*_cut(segment, begin, changes), *found]
        if begin == 0:
            break
        wanted = begin
    return found


def choose(spans: Sequence[Span], starts: Collection[int], count: int, seed: int) -> list[Span]:
    """A random choice of the spans that can be executed again, in order.

    Args:
        spans: Spans of a run.
        starts: Steps with a whole checkpoint; the beginning needs none.
        count: Most spans to choose.
        seed: Seed of the choice.
    """
    usable = [span for span in spans if not span.obstacle and (span.begin == 0 or span.begin in starts)]
    drawn = random.Random(seed).sample(usable, min(count, len(usable)))  # noqa: S311 - a choice, not a secret
    return sorted(drawn, key=lambda span: span.end)


def join(spans: Sequence[Span]) -> list[Span]:
    """Spans with consecutive ones joined. A span stays apart if it cannot be executed again, was trained by other
    processes, begins with a rollback, or ran out of memory in its rehearsal."""
    found: list[Span] = []
    for span in spans:
        before = found[-1] if found else None
        is_apart = span.rolled_back or span.rollbacks or any(map(ran_out_in_rehearsal, span.script))
        is_apart = is_apart or (before is not None and before.team != span.team)
        if before is None or before.obstacle or span.obstacle or is_apart or before.end != span.begin:
            found.append(span)
        else:
            found[-1] = replace(before, end=span.end, script=(*before.script, *span.script))
    return found


def path_to(spans: Iterable[Span], step: int, starts: Collection[int]) -> list[Span]:
    """The spans that lead to a step, joined, from the last start before it; empty without a start.

    Args:
        spans: Spans of a run.
        step: The step.
        starts: Steps with a whole checkpoint; the beginning needs none.
    """
    before = [span for span in spans if span.begin < step]
    begin = max((span.begin for span in before if span.begin == 0 or span.begin in starts), default=step)
    return join([span for span in before if span.begin >= begin])


def savable_steps(spans: Iterable[Span]) -> list[int]:
    """Steps after which a replay can write a checkpoint of its own: nothing but the next step follows them."""
    found: list[int] = []
    for span in spans:
        told = [event for event in span.script if isinstance(event, TOLD)]
        for event, after in pairwise(told):
            if isinstance(event, StepEvent) and isinstance(after, StepEvent):
                found.append(event.step)
    return found


def up_to(span: Span, step: int) -> Span:
    """The part of a span up to one of its steps, with a checkpoint there: its own, or one of the replay, and the next
    step, which shows that the weights in it were the run's."""
    if step == span.end:
        return span
    steps = [place for place, event in enumerate(span.script) if isinstance(event, StepEvent) and event.step >= step]
    place, after = steps[:2]
    saved = CheckpointEvent(step=step, path=f"checkpoints/step-{step:08d}", bytes=0, seconds=0.0)
    return replace(span, end=step, script=(*span.script[: place + 1], saved, *span.script[place + 1 : after + 1]))


def ran_out_in_rehearsal(event: Event) -> bool:
    """True for a notice that memory ran out in the rehearsal before a start's first step."""
    found = _RAN_OUT.match(event.message) if isinstance(event, NoticeEvent) else None
    return found is not None and found[1] == "the rehearsal"


def _segments(events: Iterable[Event]) -> list[_Segment]:
    found = [_Segment("start")]
    for event in events:
        if isinstance(event, PhaseEvent) and event.name == "importing":
            found.append(_Segment("start"))
        elif isinstance(event, RanksEvent):
            found[-1].team = _team_of(event)
        elif isinstance(event, NoticeEvent) and event.code == _SHARED_OUT:
            found[-1].team = replace(found[-1].team, strategy="fsdp2")
        elif isinstance(event, NoticeEvent) and event.code == "memory_replay":
            found.append(_Segment("memory", team=found[-1].team))
        elif isinstance(event, RollbackEvent):
            found.append(_Segment("spike", begin=event.step, team=found[-1].team, events=[event]))
        elif isinstance(event, (*TOLD, NoticeEvent, ControlEvent, FinishedEvent)):
            found[-1].events.append(event)
    _find_beginnings(found)
    return found


def _team_of(event: RanksEvent) -> Team:
    """The processes of a start; their event names any strategy but ``replicate``."""
    ranks = Rank.all_from(event.ranks)
    if len(ranks) <= 1:
        return ALONE
    has_cards = any(rank.device != "cpu" for rank in ranks)
    return Team(len(ranks), event.strategy or "replicate", len({rank.host for rank in ranks}), has_cards)


def _find_beginnings(segments: Sequence[_Segment]) -> None:
    """Set the step from which each segment continued, and the steps left out at its beginning."""
    saved: dict[int, _Spiked] = {}
    before = _Spiked()
    for segment in segments:
        first = next((event.step for event in segment.events if isinstance(event, StepEvent)), None)
        if segment.kind == "spike":
            (rollback,) = (event for event in segment.events if isinstance(event, RollbackEvent))
            segment.spiked = before.after(rollback)
            # Later checkpoints are deleted at a rollback.
            saved = {step: spiked for step, spiked in saved.items() if step <= rollback.step}
        elif first is not None:
            segment.begin = _gone_on_from(first, saved)
            # A rollback that is in no checkpoint is forgotten when the process ends.
            segment.spiked = before if segment.kind == "memory" else saved.get(segment.begin, _Spiked())
        before = segment.spiked
        saved |= {event.step: before for event in segment.events if isinstance(event, CheckpointEvent)}


def _gone_on_from(first: int, saved: Mapping[int, _Spiked]) -> int:
    """The step after which a segment began: of a checkpoint, if all steps between it and the segment's first step are
    left out, else the step before the first."""
    for step in range(first - 1, 0, -1):
        if step in saved:
            return step if saved[step].left_out.issuperset(range(step + 1, first)) else first - 1
    return first - 1


def _cut(segment: _Segment, begin: int, changes: dict[str, Any]) -> list[Span]:
    """The spans of a segment: from one checkpoint to the next."""
    found: list[Span] = []
    start, script, obstacle = begin, list[Event](), ""
    cut_from = _first_cut(segment)
    for event in segment.events:
        if isinstance(event, NoticeEvent) and event.code in _OTHERWISE:
            obstacle = _OTHERWISE[event.code]
        if not _belongs(event, start):
            continue
        script.append(event)
        if isinstance(event, CheckpointEvent) and event.step > start:
            first = not found
            if event.step >= cut_from:
                obstacle = obstacle or "memory ran out in one of several processes"
            found.append(
                Span(
                    start,
                    event.step,
                    tuple(script),
                    rolled_back=first and segment.kind == "memory",
                    left_out=tuple(sorted(segment.spiked.left_out)) if first and segment.kind == "spike" else (),
                    rollbacks=segment.spiked.rollbacks if first and segment.kind == "spike" else 0,
                    changes=changes if first else {},
                    team=segment.team,
                    obstacle=obstacle,
                )
            )
            start, script, obstacle = event.step, [], ""
    is_finished = any(type(event) is FinishedEvent for event in segment.events)
    if found and is_finished and not obstacle:
        # The last evaluation comes after the last checkpoint.
        last = next((place for place in range(len(script), 0, -1) if isinstance(script[place - 1], EvalEvent)), 0)
        found[-1] = replace(found[-1], script=(*found[-1].script, *script[:last]))
    return found


def _first_cut(segment: _Segment) -> float:
    """The first step at which a process of a team has split its batch for lack of memory: from then on, the splits of
    the others are unknown."""
    if not segment.team.is_several:
        return math.inf
    notices = [event for event in segment.events if isinstance(event, NoticeEvent) and event.code in SHORTAGES]
    # Notices of other processes begin with their numbers.
    ran_out = [found[1] for notice in notices if (found := _RAN_OUT.search(notice.message))]
    return min(
        (int(where.removeprefix("step ")) if where.startswith("step ") else 0 for where in ran_out), default=math.inf
    )


def _belongs(event: Event, start: int) -> bool:
    """True if a replay reproduces or obeys an event."""
    if isinstance(event, SampleEvent):
        # Answers at the checkpoint's own step belong to the span before.
        return start == 0 or event.step > start
    if isinstance(event, NoticeEvent):
        return event.code in SHORTAGES and _RAN_OUT.match(event.message) is not None
    if isinstance(event, ControlEvent):
        return bool(changes_of(event)) or (event.command == "skip_evaluation" and event.result == "ok")
    return isinstance(event, TOLD)


def changes_of(event: Event) -> dict[str, Any]:
    """Options of the training that a command has changed; options that a run was continued with are in its
    checkpoint."""
    if not isinstance(event, ControlEvent) or event.command != "set" or event.sender == KEPT:
        return {}
    if event.result.startswith("refused"):
        return {}
    return {name: value for name, value in decode_changes(event.result).items() if name in TRAINING}


def _changes_before(segments: Sequence[_Segment], begin: int) -> dict[str, Any]:
    """Options that were set between a checkpoint and the rollback to it, and that stay in force."""
    found: dict[str, Any] = {}
    # Only options set in the same process, since its start.
    since = max(place for place, segment in enumerate(segments) if not segment.is_rollback)
    reached = begin in (0, segments[since].begin)
    for segment in segments[since:]:
        for event in segment.events:
            if isinstance(event, CheckpointEvent) and event.step == begin:
                found, reached = {}, True
            elif reached:
                found |= changes_of(event)
    return found


def span_to(span: Span) -> dict[str, Any]:
    """A span as JSON."""
    values = {item.name: getattr(span, item.name) for item in fields(span)}
    return values | {"script": [encode_event(event) for event in span.script], "team": asdict(span.team)}


def span_from(values: Mapping[str, Any]) -> Span:
    """The span in the JSON of :func:`span_to`."""
    events = [decode_event(line.encode("utf-8", errors="replace")) for line in values["script"]]
    parts = {
        "script": tuple(event for event in events if event is not None),
        "left_out": tuple(values["left_out"]),
        "team": Team(**values["team"]),
    }
    return Span(**{item.name: values[item.name] for item in fields(Span)} | parts)


def recorded_threads(start: Mapping[str, Any]) -> int | None:
    """Number of threads per process of a start; None if it is not recorded.

    Args:
        start: Body of its link in the chain.
    """
    machine = start.get("machine")
    threads = machine.get("threads") if isinstance(machine, dict) else None
    return threads if type(threads) is int and threads > 0 else None

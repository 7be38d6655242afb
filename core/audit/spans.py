"""Spans of a run: the intervals between its checkpoints, each with the events by which it is executed again.

The record of a run that was killed, continued or rolled back has steps more than once. Only those that its last step
goes back to count: from the end, each start is followed to the checkpoint that it went on from.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
)
from core.runs.record.sentences import KEPT, decode_changes
from core.runs.record.state import Rank

#: What training itself tells, and a replay tells again.
TOLD = (StepEvent, EvalEvent, ProbeEvent, SampleEvent, CheckpointEvent)
#: Notices of a step that ran out of memory and was cut; it is cut again at the same step.
SHORTAGES = ("memory_weights", "memory_cut", "memory_checkpointing", "memory_offload")
#: Notices of what went another way for want of memory or room, and cannot be made to happen again.
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
#: Notice of a start that has chosen to share the weights out.
_SHARED_OUT = "strategy"


@dataclass(frozen=True)
class Team:
    """The processes of a start, as far as what they compute depends on them.

    Args:
        count: How many there were, on all machines.
        strategy: How they shared the work, as ``distributed.strategy`` has it; empty for one process.
        machines: How many machines they ran on.
        has_cards: Whether any of them trained on a card.
    """

    count: int = 1
    strategy: str = ""
    machines: int = 1
    has_cards: bool = False

    @property
    def is_several(self) -> bool:
        """Whether there was more than one process."""
        return self.count > 1


#: The only process of a start.
ALONE = Team()


@dataclass(frozen=True)
class Span:
    """An interval of training between two checkpoints.

    Args:
        begin: The step of the checkpoint that it begins with; 0 for the untouched base.
        end: The step of the checkpoint that it ends with.
        script: The events in it that training told, and the commands that changed it, in order; the end's checkpoint
            is one of them.
        rolled_back: Whether it begins by a rollback for want of memory, after which activations are recomputed.
        left_out: Steps that are left out from its beginning on, where that is a rollback for a loss spike.
        rollbacks: How many of these there were by then.
        changes: Options that were in force at its beginning although the checkpoint does not have them.
        team: The processes that trained it.
        obstacle: Why it cannot be executed again, as the rest of a sentence; empty where it can.
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
    """What a run has done about loss spikes so far, as its checkpoints have it."""

    left_out: frozenset[int] = frozenset()
    rollbacks: int = 0

    def after(self, event: RollbackEvent) -> _Spiked:
        """With one more rollback."""
        return _Spiked(self.left_out | set(range(event.first, event.last + 1)), self.rollbacks + 1)


@dataclass
class _Segment:
    """Events from a start of the worker, or a rollback, to the next one.

    Args:
        kind: What it begins with: a start, a rollback for want of memory, or one for a loss spike.
        begin: The step that it goes on from; None where it has done none.
        spiked: As of its beginning.
        team: The processes of the start that it belongs to.
        events: The events.
    """

    kind: Literal["start", "memory", "spike"]
    begin: int | None = None
    spiked: _Spiked = _Spiked()
    team: Team = ALONE
    events: list[Event] = field(default_factory=list)

    @property
    def is_rollback(self) -> bool:
        """Whether it begins with a rollback."""
        return self.kind != "start"

    def up_to(self, step: int) -> _Segment | None:
        """The part that ends with the checkpoint of a step; None where it has none."""
        for place in range(len(self.events) - 1, -1, -1):
            event = self.events[place]
            if isinstance(event, CheckpointEvent) and event.step == step:
                return replace(self, events=self.events[: place + 1])
        return None


def spans_of(events: Iterable[Event]) -> list[Span]:
    """The spans that the last step of a run goes back to, in order.

    Args:
        events: All that it has told.
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
    """Some spans at random, those that can be executed again before those that cannot, in order.

    Args:
        spans: Of a run.
        starts: Steps whose checkpoints are there and whole; the beginning needs none.
        count: How many.
        seed: The same one chooses the same.
    """
    usable = [span for span in spans if not span.obstacle and (span.begin == 0 or span.begin in starts)]
    drawn = random.Random(seed).sample(usable, min(count, len(usable)))  # noqa: S311 - a choice, not a secret
    return sorted(drawn, key=lambda span: span.end)


def join(spans: Sequence[Span]) -> list[Span]:
    """Spans that follow one another as one each, executed in one go; broken off where one cannot be executed again, was
    trained by other processes, or begins with a rollback, or a rehearsal that ran out of memory."""
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


def ran_out_in_rehearsal(event: Event) -> bool:
    """Whether it tells that memory ran out in the rehearsal before a start's first step."""
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
    """The processes that a start has told of; it tells of another strategy than ``replicate`` that it has chosen."""
    ranks = Rank.all_from(event.ranks)
    if len(ranks) <= 1:
        return ALONE
    has_cards = any(rank.device != "cpu" for rank in ranks)
    return Team(len(ranks), event.strategy or "replicate", len({rank.host for rank in ranks}), has_cards)


def _find_beginnings(segments: Sequence[_Segment]) -> None:
    """Find out from which step each segment goes on, and which steps its run leaves out by then."""
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
            # A rollback that no checkpoint tells of is forgotten when the process ends.
            segment.spiked = before if segment.kind == "memory" else saved.get(segment.begin, _Spiked())
        before = segment.spiked
        saved |= {event.step: before for event in segment.events if isinstance(event, CheckpointEvent)}


def _gone_on_from(first: int, saved: Mapping[int, _Spiked]) -> int:
    """The step after which a segment began: that of a checkpoint from which all steps up to the first one that was done
    are left out."""
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
    """The first step of which a process of several has cut its share finer, for want of memory: from there on nobody
    knows how each has cut its own."""
    if not segment.team.is_several:
        return math.inf
    notices = [event for event in segment.events if isinstance(event, NoticeEvent) and event.code in SHORTAGES]
    # Those of the others are told with their numbers before.
    ran_out = [found[1] for notice in notices if (found := _RAN_OUT.search(notice.message))]
    return min(
        (int(where.removeprefix("step ")) if where.startswith("step ") else 0 for where in ran_out), default=math.inf
    )


def _belongs(event: Event, start: int) -> bool:
    """Whether an event is one that a replay tells again, or follows."""
    if isinstance(event, SampleEvent):
        # Those of the checkpoint's own step were told by whoever wrote it, before or after.
        return start == 0 or event.step > start
    if isinstance(event, NoticeEvent):
        return event.code in SHORTAGES and _RAN_OUT.match(event.message) is not None
    if isinstance(event, ControlEvent):
        return bool(changes_of(event)) or (event.command == "skip_evaluation" and event.result == "ok")
    return isinstance(event, TOLD)


def changes_of(event: Event) -> dict[str, Any]:
    """The options of the training that a command has changed; those that a run was continued with are in its
    checkpoint."""
    if not isinstance(event, ControlEvent) or event.command != "set" or event.sender == KEPT:
        return {}
    if event.result.startswith("refused"):
        return {}
    return {name: value for name, value in decode_changes(event.result).items() if name in TRAINING}


def _changes_before(segments: Sequence[_Segment], begin: int) -> dict[str, Any]:
    """What was set between a checkpoint and the rollback to it, which stays in force."""
    found: dict[str, Any] = {}
    # Those of the same process: from its start on.
    since = max(place for place, segment in enumerate(segments) if not segment.is_rollback)
    reached = begin in (0, segments[since].begin)
    for segment in segments[since:]:
        for event in segment.events:
            if isinstance(event, CheckpointEvent) and event.step == begin:
                found, reached = {}, True
            elif reached:
                found |= changes_of(event)
    return found

"""Spans: the intervals that the last step of a run goes back to, whatever happened on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from core.audit.spans import (
    ALONE,
    Span,
    Team,
    choose,
    join,
    path_to,
    savable_steps,
    span_from,
    span_to,
    spans_of,
    up_to,
)
from core.runs.record.events import (
    CheckpointEvent,
    ControlEvent,
    EvalEvent,
    Event,
    FinishedEvent,
    NoticeEvent,
    PhaseEvent,
    RanksEvent,
    RollbackEvent,
    SampleEvent,
    StepEvent,
)
from tests.cases import cases
from tests.core.runs.helpers import step_event


def start() -> Event:
    return PhaseEvent(name="importing")


def step(number: int) -> StepEvent:
    return step_event(number)


def checkpoint(number: int) -> CheckpointEvent:
    return CheckpointEvent(step=number, path=f"checkpoints/step-{number:08d}", bytes=1, seconds=1.0)


def control(command: str, result: str, sender: str = "socket") -> ControlEvent:
    return ControlEvent(command=command, sender=sender, result=result)


def notice(code: str, message: str = "") -> NoticeEvent:
    return NoticeEvent(level="warning", code=code, message=message)


def evaluation(number: int) -> EvalEvent:
    return EvalEvent(step=number, loss=1.0, perplexity=2.0, seconds=1.0)


def ranks(*hosts: str, strategy: str = "", device: str = "cpu") -> RanksEvent:
    members = [{"rank": rank, "host": host, "device": device} for rank, host in enumerate(hosts)]
    return RanksEvent(ranks=members, strategy=strategy)


def rollback(step: int, first: int, last: int) -> RollbackEvent:
    return RollbackEvent(step=step, first=first, last=last, loss=9.0)


#: Events by their words, other than steps, checkpoints (@2), evaluations (=2), answers (?2) and rollbacks (~2:4-5).
WORDS = {
    "start": start(),
    "end": FinishedEvent(reason="all done", step=2),
    "pair": ranks("tower", "tower"),
    "alone": ranks("tower"),
    "spread": ranks("tower", "attic", "attic", device="cuda:0"),
    "deepspeed": ranks("tower", "tower", strategy="deepspeed"),
    "fsdp2": notice("strategy", "Strategy fsdp2: too small."),
    "resumed": notice("resumed"),
    "again": notice("memory_replay", "Memory ran out at step 5."),
    "unlocated": notice("memory_again", "Memory ran out."),
    "cut": notice("memory_cut", "Memory ran out at step 3: micro-batches are cut."),
    "cut-rehearsal": notice("memory_cut", "Memory ran out at the rehearsal: micro-batches of 4 rows are cut to 2."),
    "cut-1": notice("memory_cut", "Process 1: Memory ran out at step 4: micro-batches of 4 rows are cut to 2."),
    "skipped": notice("evaluation_skipped"),
    "failed": notice("checkpoint_failed"),
    "lr=0.1": control("set", "train.learning_rate = 0.1"),
    "lr=0.5": control("set", "train.learning_rate = 0.5"),
    "refused": control("set", "refused: no"),
    "deadline": control("set", "night.deadline = 07:00"),
    "asked": control("generate", "step-1: 3 tokens, stop"),
    "pause": control("pause", "ok"),
}


def event(word: str) -> Event:
    match word[0], word[1:]:
        case "@", number:
            return checkpoint(int(number))
        case "=", number:
            return evaluation(int(number))
        case "?", number:
            return SampleEvent(step=int(number), prompt="p", text="t", source=f"step-{number}")
        case "~", places:
            to, _, left_out = places.partition(":")
            return rollback(int(to), *map(int, left_out.split("-")))
    return step(int(word)) if word.isdigit() else WORDS[word]


def record(words: str) -> list[Span]:
    """The spans of a record in words."""
    return spans_of([event(word) for word in words.split()])


def told(span: Span) -> str:
    """A span in words: its bounds, what it begins with, and its script."""
    facts = [f"{span.begin}-{span.end}"]
    facts += ["back"] * span.rolled_back + [f"lr={value}" for value in span.changes.values()]
    if span.rollbacks:
        facts.append(f"{span.rollbacks} without {','.join(map(str, span.left_out))}")
    return f"{' '.join(facts)}: {' '.join(map(word_of, span.script))}"


def word_of(found: Event) -> str:
    signs = {StepEvent: "", CheckpointEvent: "@", EvalEvent: "=", SampleEvent: "?"}
    if isinstance(found, (StepEvent, CheckpointEvent, EvalEvent, SampleEvent)):
        return f"{signs[type(found)]}{found.step}"
    return next(word for word, known in WORDS.items() if known == found)


CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("spans.yaml").read_text(encoding="utf-8"))


@cases("case", CASES)
def test_a_record_has_the_spans_that_led_to_its_last_step(case: dict[str, Any]) -> None:
    found = record(case["events"])
    assert list(map(told, found)) == case["spans"]
    assert [span_from(span_to(span)) for span in found] == found


def test_what_went_another_way_for_want_of_memory_or_room_is_reported() -> None:
    first, second, third = record("start 1 skipped 2 @2 3 4 @4 5 failed 6 @6")
    assert first.obstacle == "an evaluation was left out for want of memory"
    assert second.obstacle == ""
    assert third.obstacle == "a checkpoint could not be written"
    assert choose([first, second, third], {2, 4}, 9, seed=1) == [second]


@cases(
    ("words", "joined"),
    [
        ("start 1 @1 2 @2 start cut-rehearsal 3 @3 4 @4 again 5 @5", [(0, 2), (2, 4), (4, 5)]),
        ("start 1 2 @2 3 @3 4 5 ~2:4-5 3 @3 @5 6 @6 7 8 ~6:7-8 9 @9", [(0, 2), (2, 6), (6, 9)]),
    ],
)
def test_spans_are_joined_but_where_one_has_to_begin_anew(words: str, joined: list[tuple[int, int]]) -> None:
    spans = record(words)
    found = join(spans)
    assert [(span.begin, span.end) for span in found] == joined
    assert [event for span in found for event in span.script] == [event for span in spans for event in span.script]


@cases(
    ("words", "starts", "wanted", "path"),
    [
        ("start 1 @1 2 3 4 @4 5 @5", {5}, 4, ["0-4: 1 @1 2 3 4 @4"]),
        ("start 1 @1 2 3 4 @4 5 @5", {1, 5}, 3, ["1-3: 2 3 @3 4"]),
        ("start 1 2 @2 3 @3 4 5 ~2:4-5 3 @3 @5 6 7 8 @8", {8}, 6, ["0-2: 1 2 @2", "2-6 1 without 4,5: 3 @3 @5 6 @6 7"]),
    ],
)
def test_a_path_leads_from_the_last_start_to_a_step_with_a_checkpoint(
    words: str, starts: set[int], wanted: int, path: list[str]
) -> None:
    found = path_to(record(words), wanted, starts)
    assert [*map(told, found[:-1]), told(up_to(found[-1], wanted))] == path


def test_there_is_no_path_without_a_start() -> None:
    spans = record("start 1 @1 2 @2 3 @3")
    assert path_to(spans[1:], 3, {3}) == path_to(spans, 0, {1}) == []


def test_a_replay_can_write_a_checkpoint_where_nothing_but_a_step_follows() -> None:
    assert savable_steps(record("start 1 lr=0.1 2 =2 3 4 ?4 5 6 @6 7 8 @8")) == [1, 3, 5, 7]


def test_a_seed_chooses_the_same_of_those_that_can_be_begun() -> None:
    spans = record("start " + " ".join(f"{at} @{at}" for at in range(1, 40)))
    starts = set(range(10, 39))
    chosen = choose(spans, starts, 5, seed=3)
    assert chosen == choose(spans, starts, 5, seed=3)
    assert chosen == sorted(chosen, key=lambda span: span.end)
    assert len(chosen) == 5
    assert all(span.begin == 0 or span.begin in starts for span in chosen)
    assert chosen != choose(spans, starts, 5, seed=4)


def test_each_span_has_the_processes_of_its_start() -> None:
    pair, spread = Team(2, "replicate"), Team(3, "fsdp2", machines=2, has_cards=True)
    found = record("start pair 1 @1 2 @2 start 3 @3 start spread fsdp2 4 @4 start deepspeed 5 @5 start alone 6 @6")
    assert [span.team for span in found] == [pair, pair, ALONE, spread, Team(2, "deepspeed"), ALONE]
    assert [span_from(span_to(span)) for span in found] == found
    assert [(span.begin, span.end) for span in join(found)] == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    for rolled_back in ("~2:3-4 5 6 @6", "again 3 4 5 6 @6"):
        assert {span.team for span in record(f"start pair 1 2 @2 3 4 {rolled_back}")} == {pair}


@cases(
    ("words", "cannot"),
    [
        # The notice may come late, as it is from another process.
        ("start pair 1 2 @2 3 4 @4 cut-1 5 6 @6 start pair 7 8 @8", [False, True, True, False]),
        ("start pair cut-rehearsal 1 2 @2 3 4 @4 cut-1 5 6 @6", [True] * 3),
    ],
)
def test_where_one_of_several_processes_has_cut_its_share_the_rest_of_the_start_cannot_be_executed(
    words: str, cannot: list[bool]
) -> None:
    why = "memory ran out in one of several processes"
    assert [span.obstacle for span in record(words)] == [why if each else "" for each in cannot]

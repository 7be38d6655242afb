"""Spans: the intervals that the last step of a run goes back to, whatever happened on the way."""

from __future__ import annotations

from core.audit.spans import ALONE, Team, choose, join, span_from, span_to, spans_of
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
from tests.core.runs.helpers import step_event


def start() -> Event:
    return PhaseEvent(name="importing")


def step(number: int) -> StepEvent:
    return step_event(number)


def steps(first: int, last: int) -> list[StepEvent]:
    return [step(number) for number in range(first, last + 1)]


def checkpoint(number: int) -> CheckpointEvent:
    return CheckpointEvent(step=number, path=f"checkpoints/step-{number:08d}", bytes=1, seconds=1.0)


def control(command: str, result: str, sender: str = "socket") -> ControlEvent:
    return ControlEvent(command=command, sender=sender, result=result)


def notice(code: str, message: str = "") -> NoticeEvent:
    return NoticeEvent(level="warning", code=code, message=message)


def evaluation(number: int) -> EvalEvent:
    return EvalEvent(step=number, loss=1.0, perplexity=2.0, seconds=1.0)


def bounds(events: list[Event]) -> list[tuple[int, int]]:
    return [(span.begin, span.end) for span in spans_of(events)]


def test_intervals_between_checkpoints_from_the_beginning() -> None:
    events = [start(), *steps(1, 4), checkpoint(4), *steps(5, 8), checkpoint(8), *steps(9, 9)]
    assert bounds(events) == [(0, 4), (4, 8)]
    first, second = spans_of(events)
    assert first.script == (*assert_steps(first.script, 1, 4), first.script[-1])
    assert [event.type for event in second.script] == ["step"] * 4 + ["checkpoint"]


def assert_steps(script: tuple[Event, ...], first: int, last: int) -> list[Event]:
    found = [event for event in script if isinstance(event, StepEvent)]
    assert [event.step for event in found] == list(range(first, last + 1))
    return list(found)


def test_steps_that_were_done_again_after_a_kill_count_once() -> None:
    killed = [start(), *steps(1, 4), checkpoint(4), *steps(5, 8), checkpoint(8), *steps(9, 10)]
    from_older = [start(), notice("resumed"), *steps(5, 9), checkpoint(9), *steps(10, 12), checkpoint(12)]
    assert bounds([*killed, *from_older]) == [(0, 4), (4, 9), (9, 12)]
    span = spans_of([*killed, *from_older])[1]
    assert_steps(span.script, 5, 9)


def test_a_start_that_did_no_step_is_passed_over() -> None:
    events = [start(), *steps(1, 4), checkpoint(4), start(), notice("resumed"), start(), *steps(5, 6), checkpoint(6)]
    assert bounds(events) == [(0, 4), (4, 6)]


def test_a_run_that_was_begun_anew_has_only_its_second_beginning() -> None:
    events = [start(), *steps(1, 3), start(), *steps(1, 4), checkpoint(4)]
    (span,) = spans_of(events)
    assert_steps(span.script, 1, 4)


def test_commands_evaluations_and_shortages_are_part_of_the_script_and_talk_is_not() -> None:
    events = [
        start(), step(1), control("set", "train.learning_rate = 0.001"), control("set", "refused: no"),
        control("set", "night.deadline = 07:00"), control("generate", "step-1: 3 tokens, stop"),
        control("pause", "ok"), step(2), notice("memory_cut", "Memory ran out at step 3: micro-batches are cut."),
        notice("memory_again", "Memory ran out."), step(3), evaluation(3), checkpoint(3),
    ]  # fmt: skip
    (span,) = spans_of(events)
    assert [event.type for event in span.script] == ["step", "control", "step", "notice", "step", "eval", "checkpoint"]
    again = span_from(span_to(span))
    assert again == span


def test_the_last_evaluation_belongs_to_a_run_that_finished() -> None:
    events = [start(), *steps(1, 2), checkpoint(2), evaluation(2)]
    assert [event.type for event in spans_of(events)[0].script][-1] == "checkpoint"
    done = [*events, FinishedEvent(reason="all done", step=2)]
    assert [event.type for event in spans_of(done)[0].script][-2:] == ["checkpoint", "eval"]


def test_answers_of_the_step_that_a_span_begins_with_are_not_told_again() -> None:
    sample = SampleEvent(step=2, prompt="p", text="t", source="step-2")
    later = SampleEvent(step=3, prompt="p", text="t", source="step-3")
    events = [start(), *steps(1, 2), checkpoint(2), sample, step(3), later, checkpoint(3)]
    assert [event.type for event in spans_of(events)[1].script] == ["step", "sample", "checkpoint"]


def test_a_rollback_begins_a_span_with_what_was_set_before_it() -> None:
    events = [
        start(), *steps(1, 2), checkpoint(2), step(3), control("set", "train.learning_rate = 0.5"), step(4),
        notice("memory_replay", "Memory ran out at step 5."), *steps(3, 6), checkpoint(6), *steps(7, 8), checkpoint(8),
    ]  # fmt: skip
    before, back, after = spans_of(events)
    assert (before.begin, before.end, before.rolled_back) == (0, 2, False)
    assert (back.begin, back.end, back.rolled_back, back.changes) == (2, 6, True, {"train.learning_rate": 0.5})
    assert (after.begin, after.end, after.rolled_back, after.changes) == (6, 8, False, {})


def test_what_went_another_way_for_want_of_memory_or_room_is_told() -> None:
    events = [
        start(), step(1), notice("evaluation_skipped"), step(2), checkpoint(2), *steps(3, 4), checkpoint(4),
        step(5), notice("checkpoint_failed"), step(6), checkpoint(6),
    ]  # fmt: skip
    first, second, third = spans_of(events)
    assert first.obstacle == "an evaluation was left out for want of memory"
    assert second.obstacle == ""
    assert third.obstacle == "a checkpoint could not be written"
    assert choose([first, second, third], {2, 4}, 9, seed=1) == [second]


def test_spans_are_joined_but_where_one_has_to_begin_anew() -> None:
    events = [
        start(), step(1), checkpoint(1), step(2), checkpoint(2),
        start(), notice("memory_cut", "Memory ran out at the rehearsal: cut."), step(3), checkpoint(3),
        step(4), checkpoint(4), notice("memory_replay"), step(5), checkpoint(5),
    ]  # fmt: skip
    joined = join(spans_of(events))
    assert [(span.begin, span.end) for span in joined] == [(0, 2), (2, 4), (4, 5)]
    assert [event.type for event in joined[0].script] == ["step", "checkpoint"] * 2


def test_a_seed_chooses_the_same_of_those_that_can_be_begun() -> None:
    events = [start(), *[event for at in range(1, 40) for event in (step(at), checkpoint(at))]]
    spans = spans_of(events)
    starts = set(range(10, 39))
    chosen = choose(spans, starts, 5, seed=3)
    assert chosen == choose(spans, starts, 5, seed=3)
    assert chosen == sorted(chosen, key=lambda span: span.end)
    assert len(chosen) == 5
    assert all(span.begin == 0 or span.begin in starts for span in chosen)
    assert chosen != choose(spans, starts, 5, seed=4)


def rollback(step: int, first: int, last: int) -> RollbackEvent:
    return RollbackEvent(step=step, first=first, last=last, loss=9.0)


def test_after_a_rollback_for_a_spike_its_steps_are_left_out_and_what_was_before_does_not_count() -> None:
    events = [
        start(), *steps(1, 2), checkpoint(2), *steps(3, 3), checkpoint(3), *steps(4, 5), rollback(2, 4, 5),
        step(3), checkpoint(3), checkpoint(5), step(6), checkpoint(6), *steps(7, 8), rollback(6, 7, 8), step(9),
        checkpoint(9),
    ]  # fmt: skip
    spans = spans_of(events)
    assert [(span.begin, span.end, span.left_out, span.rollbacks) for span in spans] == [
        (0, 2, (), 0), (2, 3, (4, 5), 1), (3, 5, (), 0), (5, 6, (), 0), (6, 9, (4, 5, 7, 8), 2),
    ]  # fmt: skip
    assert [len(span.script) for span in spans] == [3, 2, 1, 2, 2]
    assert not any(span.rolled_back for span in spans)
    assert [span_from(span_to(span)) for span in spans] == spans
    assert [(span.begin, span.end) for span in join(spans)] == [(0, 2), (2, 6), (6, 9)]


def test_a_rollback_directly_before_the_steps_that_are_left_out_goes_on_from_its_checkpoint() -> None:
    events = [start(), *steps(1, 2), checkpoint(2), *steps(3, 4), rollback(2, 3, 4), *steps(5, 6), checkpoint(6)]
    assert bounds(events) == [(0, 2), (2, 6)]


def test_a_start_goes_on_from_a_checkpoint_over_steps_that_it_leaves_out() -> None:
    spiked = [start(), *steps(1, 2), checkpoint(2), *steps(3, 5), rollback(2, 4, 5), step(3), checkpoint(3)]
    assert bounds([*spiked, start(), *steps(6, 7), checkpoint(7)]) == [(0, 2), (2, 3), (3, 7)]
    # Killed before a checkpoint had it, it meets the spike again.
    killed = [start(), *steps(1, 2), checkpoint(2), *steps(3, 5), rollback(2, 4, 5), step(3)]
    again = [start(), *steps(3, 5), rollback(2, 4, 5), step(3), step(6), checkpoint(6)]
    spans = spans_of([*killed, *again])
    assert [(span.begin, span.end, span.left_out, span.rollbacks) for span in spans] == [
        (0, 2, (), 0),
        (2, 6, (4, 5), 1),
    ]


def test_what_was_set_since_the_checkpoint_stays_in_force_over_two_rollbacks() -> None:
    events = [
        start(), *steps(1, 2), control("set", "train.learning_rate = 0.1"), checkpoint(2),
        control("set", "train.learning_rate = 0.5"), *steps(3, 4), rollback(2, 3, 4), *steps(5, 6), rollback(2, 5, 6),
        step(7), checkpoint(7),
    ]  # fmt: skip
    assert spans_of(events)[1].changes == {"train.learning_rate": 0.5}


def ranks(*hosts: str, strategy: str = "", device: str = "cpu") -> RanksEvent:
    members = [{"rank": rank, "host": host, "device": device} for rank, host in enumerate(hosts)]
    return RanksEvent(ranks=members, strategy=strategy)


def test_each_span_has_the_processes_of_its_start() -> None:
    events = [
        start(), ranks("tower", "tower"), *steps(1, 2), checkpoint(2), *steps(3, 4), checkpoint(4),
        start(), *steps(5, 6), checkpoint(6),
        start(), ranks("tower", "attic", "attic", device="cuda:0"), notice("strategy", "Strategy fsdp2: too small."),
        *steps(7, 8), checkpoint(8),
        start(), ranks("tower", "tower", strategy="deepspeed"), *steps(9, 10), checkpoint(10),
        start(), ranks("tower"), *steps(11, 12), checkpoint(12),
    ]  # fmt: skip
    pair = Team(2, "replicate")
    spread = Team(3, "fsdp2", machines=2, has_cards=True)
    found = spans_of(events)
    assert [span.team for span in found] == [pair, pair, ALONE, spread, Team(2, "deepspeed"), ALONE]
    assert [span_from(span_to(span)) for span in found] == found
    assert [(span.begin, span.end) for span in join(found)] == [(0, 4), (4, 6), (6, 8), (8, 10), (10, 12)]


def test_rollbacks_keep_the_processes_of_their_start() -> None:
    pair = [start(), ranks("tower", "tower"), *steps(1, 2), checkpoint(2), *steps(3, 4)]
    spiked = [RollbackEvent(step=2, first=3, last=4, loss=9.0), *steps(5, 6), checkpoint(6)]
    assert {span.team.count for span in spans_of([*pair, *spiked])} == {2}
    replayed = [notice("memory_replay", "Memory ran out at step 5."), *steps(3, 6), checkpoint(6)]
    assert {span.team.count for span in spans_of([*pair, *replayed])} == {2}


def test_where_one_of_several_processes_has_cut_its_share_the_rest_of_the_start_cannot_be_executed() -> None:
    cut = notice("memory_cut", "Process 1: Memory ran out at step 4: micro-batches of 4 rows are cut to 2.")
    # It may come late, as it is from another process.
    events = [
        start(), ranks("tower", "tower"), *steps(1, 2), checkpoint(2), *steps(3, 4), checkpoint(4), cut,
        *steps(5, 6), checkpoint(6),
    ]  # fmt: skip
    resumed = [start(), ranks("tower", "tower"), *steps(7, 8), checkpoint(8)]
    why = "memory ran out in one of several processes"
    assert [span.obstacle for span in spans_of([*events, *resumed])] == ["", why, why, ""]
    rehearsal = notice("memory_cut", "Memory ran out at the rehearsal: micro-batches of 4 rows are cut to 2.")
    events[2:2] = [rehearsal]
    assert [span.obstacle for span in spans_of(events)] == [why] * 3

from __future__ import annotations

import itertools
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.hardware.snapshot import Device
from core.runs.outlook.time_left import Schedule, estimate
from core.runs.record import events
from core.runs.record import history as glimpse
from core.runs.record.events import Event, GovernorEvent, NoticeEvent, encode_event
from core.runs.record.history import RunHistory, is_long, last_step, read_glimpse, read_history
from core.runs.record.sentences import clock, needed_for, phase_count
from core.runs.record.state import StepProgress
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.runs.event_strategies import EVENTS
from tests.core.runs.helpers import step_event as step
from tests.core.runs.helpers import there
from tests.examples import examples


def phase(name: str, t: float, detail: str = "", done: int | None = None) -> Event:
    return events.PhaseEvent(t=t, name=name, detail=detail, done=done)


def control(command: str, t: float, result: str = "ok") -> Event:
    return events.ControlEvent(t=t, command=command, sender="socket", result=result)


def fold(*items: Event) -> RunHistory:
    history = RunHistory()
    for item in items:
        history.apply(item)
    return history


def lines(history: RunHistory) -> list[str]:
    return [line.text for line in history.log]


def test_phases_add_up_their_seconds() -> None:
    loading = (phase("loading_model", 13.1, "SmolLM2"), phase("loading_model", 14, "SmolLM2", done=1))
    steps = (phase("training", 16), step(1, t=18), phase("evaluating", 20), phase("training", 21), step(2, t=24))
    history = fold(phase("importing", 10), *loading, *steps)
    assert list(history.phases) == ["importing", "loading_model", "training", "evaluating"]
    assert [phase.seconds for phase in history.phases.values()] == pytest.approx([3.1, 2.9, 7, 1])
    assert history.phase_seconds == pytest.approx({name: phase.seconds for name, phase in history.phases.items()})
    assert history.phases["loading_model"].done == 1
    assert history.phase is history.phases["training"]
    # Without the seconds before: otherwise an evaluation that began just now would be shown as "evaluating 3m 08s".
    assert history.phase_elapsed(now=26) == pytest.approx(5)
    assert lines(history) == ["importing", "loading the model: SmolLM2", "training"]
    paused = fold(phase("evaluating", 20), control("pause", 22), phase("evaluating", 60, done=1))
    assert paused.phase_elapsed(now=70) == pytest.approx(2), "a pause is no part of it"
    paused.apply(control("resume", 80))
    assert paused.phase_elapsed(now=81) == pytest.approx(3)


def test_the_log_says_what_a_person_would() -> None:
    history = fold(
        events.DataEvent(rows=412, used=410, dropped={"overlong": 2}, tokens=1000, supervised_tokens=330, longest=212),
        events.CheckpointEvent(step=30, path="checkpoints/step-00000030", bytes=39_000_000, seconds=1.23),
        events.EvalEvent(step=30, loss=0.455, perplexity=1.6, seconds=4, exact_match=0.83, rows=60),
        events.GovernorEvent(action="pause", cause="temperature", value=86, limit=83),
        events.NoticeEvent(level="warning", code="x", message="A row is odd.", hint="Look at it."),
        control("pause", 1),
        events.ControlEvent(command="stop", sender="SIGTERM", result="ok"),
        control("generate", 1, "step-30: 106 tokens, cancelled"),
        control("generate", 1, "base: 1 tokens, stop"),
        control("generate", 1, "step-30: 0 tokens, cancelled"),
        control("checkpoint", 1, "refused: No step is done yet."),
        control("set", 1, "train.learning_rate = 5e-05, eval.every_steps = 1"),
        events.ControlEvent(command="set", sender="checkpoint", result="eval.every_steps = None"),
        control("set", 1, "something else"),
        events.FailedEvent(reason="no space", step=31, hint="Make room."),
    )
    assert lines(history) == [
        "410 of 412 rows used (dropped: 2 longer than train.max_length), longest 212 tokens, 33% learned",
        "checkpoint step-30 (1.2 s, 39 MB)",
        "eval loss 0.455, exact match 0.83 (60 rows)",
        "governor: paused: the device is at 86 °C (limit 83 °C), until 78 °C",
        "A row is odd. Look at it.",
        "paused on request",
        "stopped by SIGTERM",
        "step 30 answered a question: 106 tokens, stopped in the chat",
        "the base model answered a question: 1 token",
        "a question was taken back before its answer",
        "checkpoint on request refused: No step is done yet.",
        "changed on request: learning rate 5e-5, evaluation every step",
        "kept from the checkpoint: no evaluation by steps",
        "changed on request: something else",
        "failed at step 31: no space. Make room.",
    ]
    levels = [line.level for line in history.log]
    assert levels == ["info", "info", "info", "warning", "warning", *["info"] * 9, "error"]


def test_settings_match_the_newest_start() -> None:
    history = fold(
        phase("importing", 1),
        control("set", 1, "train.learning_rate = 0.001, checkpoint.every_steps = 20"),
        control("set", 1, "train.learning_rate = 5e-05"),
        control("set", 1, "refused: train.learning_rate = 3 is too much."),
    )
    assert history.settings == {"train.learning_rate": 5e-5, "checkpoint.every_steps": 20}
    history.apply(phase("loading_model", 5))
    history.apply(phase("importing", 9))
    assert history.settings == {}
    history.apply(control("set", 9, "train.learning_rate = 0.001"))
    assert history.settings == {"train.learning_rate": 1e-3}


def test_a_resumed_run_replaces_the_steps_it_does_again() -> None:
    history = fold(
        phase("importing", 1),
        phase("training", 2),
        *(step(number, loss=number) for number in range(1, 6)),
        events.EvalEvent(t=105, step=4, loss=0.4, perplexity=1, seconds=1, exact_match=0.5),
        step(6, loss=6),
        events.CheckpointEvent(t=107, step=5, path="x", bytes=1, seconds=1),
    )
    history.apply(events.StoppedEvent(t=108, reason="stopped by SIGTERM", step=6))
    assert (history.starts, history.end is None, history.phase) == (1, False, None)
    for item in (phase("importing", 5000), phase("training", 5001), step(3, t=5002, loss=30)):
        history.apply(item)
    assert (history.starts, history.end) == (2, None)
    assert list(history.loss.steps) == [1, 2, 3]
    assert list(history.loss.values) == [1, 2, 30]
    assert list(history.grad_norm.steps) == [1, 2, 3]
    assert (history.tokens, history.tokens_per_second, history.paused_seconds) == (300, 50.0, 0.0)
    assert (history.evals, history.checkpoints) == ([], [])
    assert len(history.eval_loss) == len(history.exact_match) == 0
    assert [(mark.step, mark.kind) for mark in history.marks] == [(3, "resumed")]
    assert "continued after step 6" in lines(history)
    # The hour between the two workers counts for no phase.
    assert sum(history.phase_seconds.values()) < 200


def test_devices_of_another_version_are_left_out() -> None:
    good = Device(index=0, kind="cuda", name="RTX", temperature_c=70.0)
    history = fold(events.HardwareEvent(devices=[good.to_dict(), {"index": 1}], energy_wh=1.5))
    assert (history.devices, history.energy_wh) == ([good], 1.5)
    history.apply(events.HardwareEvent(devices=[]))
    assert (history.devices, history.energy_wh) == ([], 1.5)
    # Memory gathers by device.
    for event in (
        events.MemoryEvent(device="cuda:0", predicted_bytes={"weights": 5}, peak_bytes=7),
        events.MemoryEvent(device="cpu", peak_bytes=3),
        events.MemoryEvent(device="cuda:0", peak_bytes=8),
    ):
        history.apply(event)
    peaks = [(name, found.predicted_bytes, found.peak_bytes) for name, found in history.memory.items()]
    assert peaks == [("cuda:0", {"weights": 5}, 8), ("cpu", None, 3)]


def test_a_loss_that_is_no_number_is_an_error_once() -> None:
    history = fold(step(1), step(2, loss=math.nan), step(3, loss=math.nan, t=math.nan))
    assert lines(history) == ["the loss is not a finite number at step 2"]
    assert list(history.loss.gaps) == [2, 3]
    assert history.updated == 102.0
    assert clock(math.nan) == clock(1e30) == "--:--:--"


def test_new_lines_can_be_asked_for() -> None:
    history = RunHistory()
    seen = 0
    for number in range(6000):
        history.apply(events.NoticeEvent(level="info", code="x", message=str(number)))
        if number in (3, 10):
            assert [line.text for line in history.log_since(seen)] == [str(n) for n in range(seen, number + 1)]
            seen = history.log_count
    assert history.log_since(history.log_count) == []
    assert len(history.log_since(0)) == len(history.log) == 5000


@settings(max_examples=examples(60))
@given(st.lists(EVENTS, max_size=30))
def test_no_event_breaks_the_view_and_every_line_is_safe(items: list[Event]) -> None:
    history = fold(*items)
    eta = estimate(history.timings, Schedule(measures=True, eval_steps=3, eval_epochs=0.1), 100, 1e9)
    assert eta is None or math.isfinite(eta.seconds)
    history.phase_elapsed(1e9)
    for line in history.log:
        assert isinstance(line.clock, str)
        assert "\n" not in line.text
        assert not [c for c in line.text if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or "\u202a" <= c <= "\u202e"]
    assert all(math.isfinite(phase.seconds) and phase.seconds >= 0 for phase in history.phases.values())
    assert list(history.loss.steps) == sorted(set(history.loss.steps))


def test_a_history_is_read_from_its_file(run: Run) -> None:
    assert read_history(run).step == 0
    assert last_step(run) is None
    written = [phase("importing", 1), step(1), step(2)]
    run.events_path.write_text("garbage\n" + "".join(map(encode_event, written)) + encode_event(step(3))[:-5])
    history = read_history(run)
    assert history.step == 2
    assert history.skipped == 1
    assert last_step(run) == step(2)


def test_the_last_step_is_found_behind_a_lot_of_other_things(run: Run) -> None:
    other = events.SampleEvent(step=9, prompt='the word "step"', text="x" * 1000, source="base")
    run.events_path.write_text(encode_event(step(5)) + encode_event(other) * 900 + '{"type": "step", "broken')
    assert last_step(run) == step(5)
    run.events_path.write_text(encode_event(step(4)))
    assert last_step(run) == step(4)
    with run.events_path.open("a") as file:
        file.write("\n" + json.dumps({"t": 1, "type": "step"}) + "\n")
    assert last_step(run) == step(4)


def sample(step: int, prompt: str = "q", text: str = "a") -> events.SampleEvent:
    source = f"step-{step}" if step else "base"
    return events.SampleEvent(t=100.0 + step, step=step, prompt=prompt, text=text, source=source)


def test_the_first_answers_stay_however_many_follow() -> None:
    history = fold(sample(0, "one"), sample(0, "two"), *(sample(number) for number in range(1, 700)))
    assert [item.prompt for item in history.samples][:3] == ["one", "two", "q"]
    assert len(history.samples) == 500
    assert history.samples[-1].step == 699
    long = fold(*(sample(number // 2, text="x" * 40_000) for number in range(400)))
    assert [item.step for item in long.samples][:2] == [0, 0]
    assert sum(len(item.text) for item in long.samples) <= 1 << 22
    long.apply(sample(500, text="x" * (1 << 22)))
    assert [item.step for item in long.samples] == [0, 0], "it leaves no room for itself"


def test_answers_of_replayed_steps_are_replaced() -> None:
    history = fold(phase("importing", 1), phase("training", 2), sample(0), step(1), step(2), sample(2), step(3))
    for event in (phase("importing", 9), phase("training", 10), step(2, t=11.0)):
        history.apply(event)
    assert [item.step for item in history.samples] == [0]
    history.apply(sample(2, text="again"))
    for event in (phase("importing", 20), sample(2, text="once more"), sample(2, "another")):
        history.apply(event)
    told = [(item.step, item.prompt, item.text) for item in history.samples]
    assert told == [(0, "q", "a"), (2, "q", "once more"), (2, "another", "a")]


def test_work_is_counted_without_pauses_and_without_the_time_between_two_starts() -> None:
    history = fold(
        phase("importing", 0),
        phase("training", 5),
        step(1, t=10),
        control("pause", 12),
        events.HardwareEvent(t=500, devices=[], energy_wh=2.0),
        events.StoppedEvent(t=1000, reason="", step=1),
        phase("importing", 5000),
        phase("training", 5004),
        events.HardwareEvent(t=5005, devices=[], energy_wh=0.5),
        step(2, t=5010),
        control("pause", 5010, "refused: no"),
        events.GovernorEvent(t=5012, action="pause", cause="temperature"),
        events.GovernorEvent(t=5112, action="resume", cause="temperature"),
        events.FinishedEvent(t=5113, reason="", step=2),
    )
    assert history.working_seconds == 12 + 12 + 1
    assert history.energy_wh == 2.5


def test_pauses_of_the_user_and_of_the_governor_end_apart() -> None:
    history = fold(
        phase("importing", 0),
        phase("training", 5),
        step(1, t=10),
        events.GovernorEvent(t=20, action="pause", cause="disk"),
        control("pause", 30),
        events.GovernorEvent(t=40, action="resume", cause="disk"),
        events.HardwareEvent(t=50, devices=[]),
    )
    assert history.timings.paused_since == 20
    assert history.working_seconds == 20
    history.apply(control("resume", 60))
    assert history.timings.paused_since is None


def test_what_slows_a_run_is_known_until_it_is_over() -> None:
    slow = events.GovernorEvent(t=11, action="slow", cause="temperature", value=81, limit=80, duty=0.6)
    history = fold(phase("importing", 0), phase("training", 5), step(1, t=10), slow)
    assert history.slowed == slow
    assert (history.marks[-1].kind, history.marks[-1].text) == ("governor", "slowed to 60 % to hold 80 °C")
    history.apply(events.GovernorEvent(t=12, action="full", cause="temperature", duty=1.0))
    assert history.slowed is None


def test_a_promise_is_shown_beside_the_truth() -> None:
    expected = {"energy_kwh": 0.9, "promised_energy_kwh": 0.8, "used_kwh": 0.3, "energy_limit_kwh": 1.0}
    when = {"finish": 1e9, "promised_finish": 1e9 - 900, "deadline": 1e9 - 60}
    night = events.NightEvent(t=11, cause="measured", duty=0.7, quiet_duty=0.0, **when, **expected)
    history = fold(phase("importing", 0), night)
    assert history.night == night
    assert (night.misses_deadline, night.misses_energy) == (True, False)
    assert lines(history)[-1].endswith("0.80 kWh), 0.30 kWh so far")


def device(**values: object) -> dict[str, object]:
    return Device.from_dict({"index": 0, "kind": "cuda", "name": "card", **values}).to_dict()


def test_the_first_device_has_curves_by_the_step_that_was_done() -> None:
    def sample(t: float, **values: object) -> Event:
        return events.HardwareEvent(t=t, devices=[device(**values), device(temperature_c=20.0)])

    history = fold(
        events.HardwareEvent(t=1, devices=[]),
        step(1),
        sample(101, temperature_c=60.0, power_w=300.0, memory_used=8_000_000_000),
        step(2),
        sample(102, temperature_c=75.0, power_w=320.0, memory_used=9_000_000_000),
        sample(103, temperature_c=70.0, power_w=310.0, memory_used=9_500_000_000),
        step(3),
        sample(104, temperature_c=71.0, age_s=30.0),
    )
    assert list(history.temperature.steps) == [1, 2, 3]
    assert history.temperature.bounds() == (60.0, 75.0), "the hottest moment of a step stays"
    assert list(history.temperature.values)[:2] == [60.0, 70.0]
    assert list(history.temperature.gaps) == list(history.power.gaps) == [3], "old values are none"
    assert list(history.power.values)[:2] == [300.0, 310.0]
    assert list(history.device_memory.values)[:2] == [8.0, 9.5]
    assert history.times.at(2) == 102.0
    history.apply(step(2, t=200))
    assert list(history.temperature.steps) == [1]


def test_what_halts_a_run_is_marked_each_with_its_kind() -> None:
    halts = (control("pause", 1), control("resume", 1, "refused: no"), control("resume", 1))
    notices = [NoticeEvent(t=2, level="warning", code=code, message="x") for code in ("memory_cut", "slow_step")]
    history = fold(step(1), *halts, step(2), control("park", 1), control("checkpoint", 1), *notices)
    kinds = [(1, "paused"), (1, "going_on"), (2, "parked"), (2, "memory"), (2, "warning")]
    assert [(mark.step, mark.kind) for mark in history.marks] == kinds
    assert history.marks[0].text == "paused on request"


def test_a_rollback_forgets_what_it_undid_and_is_marked_where_the_run_goes_on() -> None:
    spike = NoticeEvent(level="warning", code="loss_spike", message="The loss spikes.")
    back = events.RollbackEvent(step=6, first=9, last=10, loss=7.125, expected=1.2, rows="a.jsonl line 3")
    history = fold(*map(step, range(1, 11)), spike, back, *map(step, (7, 8, 11)))
    assert [(mark.step, mark.kind) for mark in history.marks] == [(6, "rollback")]
    assert list(history.loss.steps) == [1, 2, 3, 4, 5, 6, 7, 8, 11]
    told = "back to step-6, without steps 9 to 10: loss 7.12 where about 1.20 was expected; rows: a.jsonl line 3"
    assert (history.log[-1].level, history.log[-1].text) == ("warning", told)


def line(number: int) -> str:
    return encode_event(step(number, loss=1.0 / number))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes short records count as long."""
    monkeypatch.setattr(glimpse, "LONG_BYTES", 10_000)
    monkeypatch.setattr(glimpse, "PLACES", 50)


@pytest.mark.usefixtures("short")
def test_steps_from_all_over_a_record(run: Run) -> None:
    run.events_path.write_text("".join(map(line, range(1, 2001))), encoding="utf-8")
    assert is_long(run)
    found = there(read_glimpse(run))
    assert 40 <= len(found.loss) <= 50
    assert found.loss.steps[0] <= 3
    assert found.step >= 1990
    assert max(after - before for before, after in itertools.pairwise(found.loss.steps)) < 60
    assert list(found.loss.values) == pytest.approx([1.0 / step for step in found.loss.steps])
    # Of replayed steps, the last ones are kept.
    run.events_path.write_text("".join(map(line, [*range(1, 1000), *range(500, 800)])), encoding="utf-8")
    found = there(read_glimpse(run))
    assert list(found.loss.steps) == sorted(set(found.loss.steps))
    assert found.loss.steps[-1] < 800


@pytest.mark.usefixtures("short")
def test_a_record_without_steps_has_none(run: Run) -> None:
    notice = encode_event(NoticeEvent(level="info", code="", message="x" * 3000))
    for content in ("", "x" * 50_000, "\n" * 50_000, notice * 20):
        run.events_path.write_text(content, encoding="utf-8")
        assert read_glimpse(run) is None
    os.unlink(run.events_path)
    assert read_glimpse(run) is None


@cases(
    ("event", "why"),
    [
        (NoticeEvent(level="error", code="x", message="No room is left."), "No room is left."),
        (
            GovernorEvent(action="pause", cause="disk", value=4, limit=5),
            "room on the disk is at 4.0 GB (least 5.0 GB), until 5.5 GB",
        ),
        (NoticeEvent(level="warning", code="memory_cut", message="Smaller micro-batches from now on."), ""),
        (GovernorEvent(action="pause", cause="temperature", value=86.0, limit=83.0), ""),
        (GovernorEvent(action="pause", cause="quiet hours"), ""),
        (GovernorEvent(action="resume", cause="disk", value=6.0, limit=5.0), ""),
    ],
)
def test_somebody_is_needed_where_a_run_does_not_go_on_by_itself(event: Event, why: str) -> None:
    assert needed_for(event) == why


@cases(
    ("phase", "progress", "done", "total", "words"),
    [
        ("evaluating", None, 40, 40, "40/40"),
        ("evaluating", None, None, None, ""),
        ("evaluating", StepProgress("evaluation", 18, 40), 17, 40, "17/40"),
        ("evaluating", StepProgress("answers", 3, 80), 40, 40, "answers 3/80"),
        ("evaluating", StepProgress("samples", 0, 0), 40, 40, "samples"),
        ("saving", StepProgress("checkpoint", 0, 0), None, None, ""),
        # The state is of a moment before the phase.
        ("saving", StepProgress("probe", 19, 40), None, None, ""),
    ],
)
def test_parts_of_an_evaluation_count_apart(
    phase: str, progress: StepProgress | None, done: int | None, total: int | None, words: str
) -> None:
    assert phase_count(phase, progress, done, total) == words

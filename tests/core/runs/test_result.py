"""Result of a run: its bars, its figures and its end in a sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from core.config.gate import read_bars
from core.runs.catalog.result import GateFigures, Measure, RunResult, ended_since, judge, read_outcome, result_of
from core.runs.record import events
from core.runs.record.events import EvalEvent, Event, FinishedEvent, ProbeEvent, SampleEvent, StoppedEvent
from core.runs.record.history import RunHistory
from core.runs.record.sentences import ALL_DONE, brief_id, slug_of
from core.runs.record.state import RunState
from core.runs.record.store import Labels, Run, write_labels
from tests.cases import cases
from tests.core.runs.helpers import add_checkpoint, there
from tests.core.runs.helpers import step_event as step
from tests.core.runs.test_history import fold, phase
from tests.tui.scripted_run import ScriptedRun


def evaluation(number: int, loss: float, exact: float | None = None, json: float | None = None) -> EvalEvent:
    return EvalEvent(
        t=201.5 + number, step=number, loss=loss, perplexity=math.exp(loss), seconds=1.0, exact_match=exact,
        valid_json=json, rows=20,
    )  # fmt: skip


def result(history: RunHistory, directory: Path, state: str = "finished", **fields: Any) -> RunResult:
    usual: dict[str, Any] = {"step": history.step, "total_steps": 30, "reason": ALL_DONE if state == "finished" else ""}
    return result_of(Run(directory), RunState(state=state, **usual | fields), history)


def names(found: RunResult) -> list[str]:
    return [measure.name for measure in found.measures]


@pytest.fixture
def finished(tmp_path: Path) -> list[Event]:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "adapter" / "tokenizer.json").write_bytes(bytes(234))
    return [
        phase("importing", 50),
        phase("training", 60),
        evaluation(0, 4.0, 0.0, 0.0),
        *(step(number, t=201.0 + number) for number in range(1, 16)),
        evaluation(15, 0.5, 0.2, 1.0),
        *(step(number, t=201.0 + number) for number in range(16, 31)),
        evaluation(30, 0.1, 0.35, 1.0),
        FinishedEvent(t=240.0, reason=ALL_DONE, step=30, best=30, adapter="adapter"),
    ]


def test_a_finished_run_is_compared_with_the_untouched_model(finished: list[Event], tmp_path: Path) -> None:
    found = result(fold(*finished), tmp_path)
    assert names(found) == ["exact match", "valid JSON", "eval loss"]
    exact, _, loss = found.measures
    assert (exact.before, exact.after, exact.course) == (0.0, 0.35, (0.0, 0.2, 0.35))
    assert (loss.before, loss.after) == (4.0, 0.1)
    assert loss.note == "perplexity 54.6 → 1.11"
    assert (found.before, found.after) == ("before", "after")
    assert (found.seconds, found.reason, found.lost_steps) == (190.0, "", 0)
    assert (found.path, found.bytes, found.is_model) == (tmp_path / "adapter", 1234, False)


def test_corrected_answers_are_counted_before_and_after(finished: list[Event], tmp_path: Path) -> None:
    def asked(step: int, *right: bool) -> list[Event]:
        return [
            SampleEvent(
                step=step, prompt=f"{place}", text="", source="", expected="a", exact_match=is_so, correction=True
            )
            for place, is_so in enumerate(right)
        ]

    others = [SampleEvent(step=step, prompt="q", text="", source="", exact_match=True) for step in (0, 30)]
    first = [*finished[:3], others[0], *asked(0, False, False, True, False)]
    told = result(
        fold(*first, *finished[3:-1], others[1], *asked(30, True, True, False, False), finished[-1]), tmp_path
    )
    corrected = told.measures[0]
    assert (corrected.name, corrected.before, corrected.after) == ("corrected answers", 0.25, 0.5)
    assert corrected.note == "2 of 4 turned right, 1 turned wrong"
    assert names(result(fold(*first, *finished[3:]), tmp_path))[0] == "exact match", "they were asked once"


def test_the_adapter_of_the_best_step_is_compared_as_it_is(finished: list[Event], tmp_path: Path) -> None:
    reason = "all steps done; the adapter is that of step 15, the best one"
    best = FinishedEvent(t=240.0, reason=reason, step=30, best=15)
    found = result(fold(*finished[:-1], best), tmp_path, reason=best.reason)
    assert found.measures[0].after == 0.2
    assert found.after == "step 15"
    assert found.reason.endswith("the best one")
    assert found.path is None


def test_a_better_step_is_offered_while_its_checkpoint_is_there_and_can_be_taken(
    finished: list[Event], tmp_path: Path
) -> None:
    worse = [*finished[:-2], evaluation(30, 0.9, 0.1), finished[-1]]
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    history = fold(*worse)
    assert result(history, tmp_path).better is None, "no checkpoint is kept"
    kept = add_checkpoint(Run(tmp_path), 15)
    better = there(result(history, tmp_path).better)
    assert (better.step, better.own, better.told) == (15, 30, "step 15 was better (0.500)")
    assert result(fold(*finished), tmp_path).better is None, "the result is the better one"
    alike = [*finished[:-2], evaluation(30, 0.505, 0.1), finished[-1]]
    assert result(fold(*alike), tmp_path).better is None, "80 rows do not resolve one percent"
    (kept / "adapter").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (kept / "adapter" / name).write_bytes(bytes(7))
    write_labels(tmp_path, Labels(result=15))
    found = result(history, tmp_path)
    assert there(found.better).told == "step 15 is taken as the result (0.500)"
    assert (found.measures[-1].after, found.after) == (0.5, "step 15")
    assert (found.path, found.bytes) == (kept / "adapter", 14)


def test_without_an_evaluation_the_training_loss_is_compared(tmp_path: Path) -> None:
    history = fold(*(step(number, loss=5.0 if number == 1 else 1.0) for number in range(1, 31)))
    (measure,) = result(history, tmp_path).measures
    assert (measure.before, measure.after, measure.is_explained) == (5.0, 1.0, True)
    assert measure.note == "the first step → the median of the last 5"
    odd = fold(*(step(number, loss=9.0 if number == 30 else 1.0) for number in range(1, 31)))
    assert result(odd, tmp_path).measures[0].after == 1.0, "one odd batch at the end is not the loss"
    assert result(RunHistory(), tmp_path).measures == ()
    assert result(fold(step(1, loss=math.nan)), tmp_path).measures == ()
    diverged = fold(step(1), step(2, loss=math.nan))
    assert result(diverged, tmp_path).measures == ()


def test_of_a_single_evaluation_the_training_loss_shows_the_gain(tmp_path: Path) -> None:
    steps = [step(number, loss=5.0 if number == 1 else 1.0) for number in range(1, 31)]
    history = fold(*steps, evaluation(30, 0.5, 0.1))
    for state, more in (("finished", [("training loss", 5.0)]), ("stopped", [])):
        found = [(measure.name, measure.before) for measure in result(history, tmp_path, state).measures]
        assert found == [("exact match", None), ("eval loss", None), *more]
    assert result(history, tmp_path, "stopped").after == "step 30"


def test_rewards_are_compared_where_there_is_no_perplexity(tmp_path: Path) -> None:
    preference = EvalEvent(step=1, loss=0.7, perplexity=None, seconds=1.0, reward_accuracy=0.9, reward_margin=1.5)
    found = result(fold(step(1), preference), tmp_path, "stopped")
    assert names(found) == ["reward accuracy", "reward margin", "eval loss"]
    assert found.measures[-1].note == ""


def test_what_a_stopped_run_keeps_and_loses(tmp_path: Path) -> None:
    saved = events.CheckpointEvent(t=150.0, step=10, path="checkpoints/step-00000010", bytes=9, seconds=1.0)
    steps = [step(number) for number in range(1, 16)]
    stopped = fold(*steps[:10], saved, *steps[10:], StoppedEvent(reason="stopped on request", step=15))
    found = result(stopped, tmp_path, "stopped")
    assert (found.saved_step, found.lost_steps, found.step, found.total_steps) == (10, 5, 15, 30)
    assert (found.path, found.bytes) == (None, None)


@cases("adapter", ["../other", "/etc", "a\0b", "missing"])
def test_a_result_that_is_not_in_the_run_is_none(tmp_path: Path, adapter: str) -> None:
    history = fold(FinishedEvent(reason="", step=1, adapter=adapter))
    assert result(history, tmp_path).path is None


@cases(
    ("after", "note"),
    [
        (2.12, "0.12 forgotten since step 0: it answers general questions worse"),
        (2.001, "nothing forgotten since step 0"),
        (1.5, "nothing forgotten since step 0"),
    ],
)
def test_the_probe_is_compared_with_the_untouched_model(tmp_path: Path, after: float, note: str) -> None:
    probe = events.ProbeEvent(t=150.0, step=0, loss=2.0, seconds=1.0)
    first, last = measured(15, 0.5, probe_loss=2.05), measured(30, 0.5, probe_loss=after)
    found = result(fold(probe, step(1), first, step(16), last), tmp_path)
    course = (2.0, 2.05, after)
    assert found.measures[-1] == Measure("probe loss", 2.0, after, "loss", course, note, is_explained=True)
    once = Measure("probe loss", None, after, "loss", (after,), is_explained=True)
    assert once in result(fold(step(1), last), tmp_path).measures


def test_a_refused_result_is_reported_by_the_state_or_the_last_event(tmp_path: Path) -> None:
    end = FinishedEvent(t=240.0, reason=ALL_DONE, step=30, refused="loss is 1 and should be <= 0.5\x1b[2J")
    assert result(fold(step(30), end), tmp_path).refused.startswith("loss is 1 and should be <= 0.5")
    assert "\x1b" not in result(fold(step(30), end), tmp_path).refused
    assert result(fold(step(30)), tmp_path, refused="by the state").refused == "by the state"
    assert result(fold(step(30)), tmp_path).refused == ""


def measured(step: int, loss: float, **figures: Any) -> EvalEvent:
    return EvalEvent(step=step, loss=loss, perplexity=math.exp(loss), seconds=1.0, **figures)


EVENTS: list[Event] = [
    ProbeEvent(step=0, loss=2.0, seconds=1.0),
    measured(0, 1.0, exact_match=0.1),
    measured(10, 0.3, exact_match=0.9, probe_loss=2.05),
    measured(20, 0.5, exact_match=0.7, probe_loss=2.5),
]


def verdict(*bars: str, step: int = 20, events: list[Event] = EVENTS) -> str:
    return judge(read_bars(bars), GateFigures.of(events, step))


def test_the_result_passes_where_it_reaches_all_bars() -> None:
    assert verdict("loss <= 0.9*before", "exact_match >= 0.7", "probe_loss <= before + 0.5") == ""
    assert verdict("exact_match >= 0.8", "probe_loss <= before + 0.1", step=10) == verdict() == ""
    # A step that was measured again counts as the last time.
    assert verdict("loss <= 0.5", events=[*EVENTS, measured(20, 0.2)]) == ""
    assert verdict("loss <= 0.5", events=[*EVENTS, measured(20, 0.9)]) != ""


def test_each_bar_that_is_missed_is_reported_with_its_numbers() -> None:
    found = verdict("loss <= 0.4*before", "exact_match >= 0.8", "probe_loss <= before + 0.1")
    assert found == (
        "loss is 0.500 and should be <= 0.400 (loss <= 0.4*before, before 1.00); "
        "exact_match is 0.700 and should be >= 0.800; "
        "probe_loss is 2.50 and should be <= 2.10 (probe_loss <= before + 0.1, before 2.00)"
    )


def test_what_was_not_measured_reaches_nothing() -> None:
    assert verdict("loss <= 9", step=30) == "loss was not measured (loss <= 9)"
    assert verdict("valid_json >= 0") == "valid_json was not measured (valid_json >= 0)"
    without = EVENTS[2:]
    assert "loss of the untouched model was not measured" in verdict("loss <= before", events=without)
    broken: list[Event] = [measured(0, 1.0), measured(20, math.nan)]
    assert verdict("loss >= 0", events=broken).startswith("loss is NaN")


def told(script: ScriptedRun, after: float) -> str:
    """The end of a run as it is told some seconds later."""
    outcome = there(read_outcome(script.run))
    return outcome.tell(outcome.ended + after)


def test_a_finished_run_shows_loss_and_exact_match_or_that_it_is_refused(private_home: Path) -> None:
    script = ScriptedRun(private_home, "20261124-203633-faq", total=30)
    script.train_to(30)
    assert read_outcome(script.run) is None
    script.end("finished", "all steps done")
    assert told(script, 12 * 60).startswith("203633-faq finished 12 min ago while you were away: loss 0.")
    assert told(script, 12 * 60).endswith(", exact match 0.83.")
    script.write_state(state="finished", reason="all steps done", refused="loss is 1.20 and should be <= 1.00")
    assert told(script, 0.0).endswith(": its result is refused by eval.gate: loss is 1.20 and should be <= 1.00.")


def test_another_end_says_so(private_home: Path) -> None:
    script = ScriptedRun(private_home, "a")
    script.begin()
    script.steps(1, 20)
    script.end("stopped", "stopped on request after step 20")
    assert told(script, 0.0).startswith("a was stopped at step 20 of 120 just now while you were away:")
    script.end("failed", "there is no file x.\x1b[31m")
    assert told(script, 0.0).startswith("a failed at step 20 of 120 just now while you were away: there is no file x.")
    assert "\x1b" not in told(script, 0.0)


def test_a_lost_run_says_why(private_home: Path) -> None:
    script = ScriptedRun(private_home, "20261124-203633-faq")
    script.begin()
    script.write_state(pid=1, pid_started="another boot")
    assert told(script, 7200).startswith("203633-faq was lost 2 h ago while you were away: its process 1")
    ended = script.run.state().updated
    assert ended_since(script.run, ended - 1)
    assert not ended_since(script.run, ended)


def test_names_of_runs() -> None:
    assert (brief_id("20261124-203633-faq-2"), slug_of("20261124-203633-faq-2")) == ("203633-faq-2", "faq-2")
    for odd in ("20261124-203633-", "renamed", ""):
        assert brief_id(odd) == slug_of(odd) == odd

"""Files of an undisturbed run, from its first event to its adapter, and of one that is over early."""

from __future__ import annotations

import json
import math
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pytest

from core.evaluation.held_out import kept_steps, read_answers
from core.runs.control.client import ControlClient
from core.runs.record.events import (
    CheckpointEvent,
    DataEvent,
    EvalEvent,
    HardwareEvent,
    MemoryEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
)
from core.runs.record.history import read_history
from core.runs.record.state import RunState, hostname, is_same_process
from core.runs.record.store import Run, complete_checkpoints
from core.tracking.position import TrackerFiles
from tests.waiting import wait_for

from .workers import PATIENCE, RECIPE, STEPS, Workers, ending, events, exit_code, log, only, steps, wait_until_listening


def test_the_phases_come_in_order(reference: Run) -> None:
    told = [event.name for event in only(PhaseEvent, reference)]
    evaluating = ["training", "evaluating"] * ((STEPS - 1) // 10)
    # The untouched model answers the sample questions before the first step.
    before = ["importing", "preparing_data", "loading_model", "rehearsing", "evaluating"]
    assert [name for name, _ in groupby(told)] == [*before, *evaluating, "training", "saving", "evaluating", "saving"]


def test_a_first_step_as_large_as_any_is_the_rehearsal(workers: Workers) -> None:
    rows = workers.directory / "alike.jsonl"
    answers = ("yes", "no", "so", "to", "of", "in", "at", "on")
    turns = [[{"role": "user", "content": "Well?"}, {"role": "assistant", "content": word}] for word in answers]
    rows.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns))
    run = workers.start("alike", data={"train": str(rows)}, train={"max_steps": 3, "batch_size": 8})
    assert exit_code(run) == 0
    told = [event for event in events(run) if isinstance(event, (StepEvent, MemoryEvent))]
    assert isinstance(told[0], StepEvent)
    assert isinstance(told[1], MemoryEvent)
    assert told[1].rehearsed_bytes is not None
    assert [event.rehearsed_bytes for event in only(MemoryEvent, run)[1:]] == [None] * (len(only(MemoryEvent, run)) - 1)
    assert [event.step for event in steps(run)] == [1, 2, 3]


def test_every_step_is_reported_once_with_sound_numbers(reference: Run) -> None:
    told = steps(reference)
    assert [event.step for event in told] == list(range(1, STEPS + 1))
    for event in told:
        assert math.isfinite(event.loss)
        assert 0 < event.supervised_tokens < event.tokens
        assert event.seconds > 0
        assert event.tokens_per_second == pytest.approx(event.tokens / event.seconds)
        assert event.paused_seconds == 0
        assert event.epoch == pytest.approx(event.step / 10)
        assert event.grad_norm > 0
    assert sum(event.loss for event in told[-5:]) < 0.9 * sum(event.loss for event in told[:5])
    # Warm-up from zero over a twentieth of the steps, then a cosine down to nearly zero.
    rates = [event.lr for event in told]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(RECIPE["train"]["learning_rate"])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.01 * max(rates)


def test_data_evaluations_checkpoints_samples_and_memory_are_reported(reference: Run) -> None:
    (data,) = only(DataEvent, reference)
    assert (data.rows, data.used, data.dropped) == (40, 40, {})
    assert 0 < data.supervised_tokens < data.tokens
    assert data.tokens / 40 < data.longest <= 256
    measured = only(EvalEvent, reference)
    assert [event.step for event in measured] == [10, 20, 30, 40, STEPS]
    for event in measured:
        assert event.perplexity == pytest.approx(math.exp(event.loss))
        assert event.rows == 5
        assert None not in (event.exact_match, event.valid_json)
    best = min(measured, key=lambda event: event.loss).step
    assert kept_steps(reference) == sorted({10, best, STEPS}), (
        "answers of the first, the best and the newest evaluation"
    )
    answers = read_answers(reference, STEPS)
    right = [answer.scores["exact_match"] for answer in next(iter(answers.answers.values())) if answer is not None]
    assert sum(right) / 5 == measured[-1].exact_match
    assert {item.id.rpartition(":")[0] for item in answers.items} == {"eval.jsonl"}
    assert [event.step for event in only(CheckpointEvent, reference)] == [*range(5, STEPS, 5), STEPS]
    kept = sorted(path.name for path in reference.checkpoints_path.iterdir())
    # The checkpoint nearest to the middle of the run stays beside the newest.
    assert kept == ["step-00000025", "step-00000040", "step-00000045", f"step-{STEPS:08d}"]
    samples = only(SampleEvent, reference)
    assert [sample.source for sample in samples[:6]] == ["base"] * 3 + ["step-10"] * 3
    assert all(sample.expected and sample.valid_json is not None for sample in samples)
    memory = only(MemoryEvent, reference)
    (rehearsed,) = (event for event in memory if event.predicted_bytes is not None)
    # The parts at the peak; the loss is already freed if the peak is in the backward pass.
    assert {"linear_weights", "adapters", "activations", "runtime"} <= set(rehearsed.predicted_bytes or {})
    assert 50_000_000 < (rehearsed.rehearsed_bytes or 0) <= (memory[-1].peak_bytes or 0)
    assert any(event.devices for event in only(HardwareEvent, reference))


def test_the_end_is_reported_last_and_written_to_the_state(reference: Run) -> None:
    told = events(reference)
    assert [event.t for event in told] == sorted(event.t for event in told)
    end = ending(reference)
    best = min(only(EvalEvent, reference), key=lambda event: event.loss)
    assert (end.type, end.step, end.best, end.adapter) == ("finished", STEPS, best.step, "adapter")
    state = RunState.read(reference.state_path)
    assert state is not None
    assert (state.state, state.step, state.total_steps, state.socket) == ("finished", STEPS, STEPS, None)
    assert state.host == hostname()
    assert not reference.socket_path.exists()
    history = read_history(reference)
    assert (history.step, history.skipped) == (STEPS, 0)
    assert history.tokens == sum(event.tokens for event in steps(reference))
    assert "Traceback" not in log(reference)


def test_peft_loads_the_adapter_with_tokenizer_and_template(reference: Run, tiny_model_dir: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = PeftModel.from_pretrained(base, str(reference.adapter_path))
    tuned = [weights for name, weights in model.named_parameters() if "lora_B" in name]
    assert len(tuned) == 14
    assert all(torch.any(weights != 0) for weights in tuned)
    tokenizer = AutoTokenizer.from_pretrained(reference.adapter_path)
    original = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert tokenizer.get_vocab() == original.get_vocab()
    turns = [{"role": "user", "content": "hello"}]
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert shown == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_everything_is_private_to_the_user(reference: Run) -> None:
    found = [reference.path, *reference.path.rglob("*")]
    assert len(found) > 20
    for path in found:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} has mode {mode:o}"


@pytest.mark.long
@pytest.mark.anew
def test_a_heart_beats_at_least_every_five_seconds_from_the_first_import_on(workers: Workers) -> None:
    run = workers.start("heart")
    wait_until_listening(run)
    client = ControlClient(run)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.request, "pause")
        oldest, beats = 0.0, set()

        def look() -> bool:
            nonlocal oldest
            state = RunState.read(run.state_path)
            assert state is not None
            oldest = max(oldest, time.time() - state.updated)
            if state.state == "paused":
                beats.add(state.updated)
            return len(beats) == 2

        wait_for(look, PATIENCE, "heartbeats in a pause")
        assert asked.result() == {"state": "paused", "step": 0}
    assert oldest <= 5
    recorded = run.state()
    assert (recorded.state, recorded.step, recorded.total_steps) == ("paused", 0, STEPS)
    assert is_same_process(recorded.pid, recorded.pid_started)
    assert recorded.socket == str(run.socket_path)
    assert stat.S_IMODE(run.socket_path.stat().st_mode) == 0o600
    client.request("stop")
    assert exit_code(run) == 3


def test_a_run_whose_hours_are_over_is_finished_with_its_result(workers: Workers) -> None:
    # Any work at all is more than that.
    run = workers.start(train={"max_hours": 1e-6}, eval={"every_steps": None, "exact_match": False})
    assert exit_code(run) == 0
    state = run.state()
    assert state.state == "finished"
    assert state.step == 1
    assert state.reason.startswith("train.max_hours = 1e-6 is reached, after step 1 of 48")
    assert run.adapter_path.is_dir()
    manifest = json.loads((complete_checkpoints(run)[-1] / "manifest.json").read_text())
    assert manifest["limits"]["seconds"] > 0
    assert [event.step for event in only(EvalEvent, run)] == [1], "the result is measured"


@pytest.mark.long
def test_a_run_is_tracked_while_it_trains(workers: Workers) -> None:
    pytest.importorskip("tensorboard", reason="not run: TensorBoard is not installed")
    run = workers.finished(
        "tracked", train={"max_steps": 6}, eval={"every_steps": 3}, tracking={"tools": "tensorboard"}
    )
    place = TrackerFiles(run, "tensorboard")
    wait_for(lambda: place.position().state in ("done", "failed"), PATIENCE, "the tracker to end")
    assert (place.position().state, place.position().step) == ("done", 6), place.log.read_text()

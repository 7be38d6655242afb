"""Killed at any moment, a run goes on to the very result that it would have had."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path

import pytest

from core.chat.session import open_session
from core.errors import UserError
from core.models.fingerprint import ends_fingerprint
from core.runs.record.events import CheckpointEvent, DataEvent, EvalEvent, NoticeEvent, StepEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import hash_manifest
from tests.core.data.sample_files import write_parquet
from tests.core.models.spoiling import copy_model
from tests.waiting import wait_for

from . import workers as e2e
from .workers import Workers


def assert_same_result(run: Run, reference: Run) -> None:
    """The run ended as the undisturbed one did: weights to the last bit, and the same history."""
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    history, expected = read_history(run), read_history(reference)
    assert list(history.loss.steps) == list(range(1, e2e.STEPS + 1))
    assert list(history.loss.values) == list(expected.loss.values)
    assert [(event.step, event.loss, event.exact_match) for event in history.evals] == [
        (event.step, event.loss, event.exact_match) for event in expected.evals
    ]
    assert e2e.ending(run).best == e2e.ending(reference).best
    leftovers = [path for path in run.path.rglob(".*") if path.name.endswith(".tmp")]
    assert not leftovers


@pytest.mark.long
def test_a_run_killed_again_and_again_ends_bit_equal(workers: Workers, reference: Run) -> None:
    # However late the kill comes, checkpoints are left to be written. One that is cut short is a matter of
    # tests/faults/test_checkpoint_writing.py.
    run = workers.start("killed", e2e.held_at(25))
    moment = random.SystemRandom().randint(6, 20)
    print(f"killed from step {moment} on")  # noqa: T201 - shown when the test fails
    e2e.wait_until_step(run, moment)
    e2e.kill(run)
    state = run.state()
    assert state.state == "lost"
    assert str(state.pid) in state.reason
    assert state.step >= moment

    workers.resume(run)
    e2e.wait_until_state(run, "training")
    known = len(e2e.only(CheckpointEvent, run))
    wait_for(lambda: len(e2e.only(CheckpointEvent, run)) > known, e2e.PATIENCE, "a checkpoint", interval=0.001)
    e2e.kill(run)

    workers.complete(run)
    assert_same_result(run, reference)
    assert e2e.notice_codes(run).count("resumed") == 2
    done = [event.step for event in e2e.steps(run)]
    assert len(done) > e2e.STEPS, "steps after the last checkpoint were done twice"
    assert sorted(set(done)) == list(range(1, e2e.STEPS + 1))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Workers, Run]:
    """A run that was stopped after some checkpoints, to be copied and damaged."""
    found = Workers(tmp_path_factory.mktemp("stopped"), tiny_model_dir)
    run = found.start("stopped", e2e.held_at(17))
    e2e.stop_at(run, 17)
    return found, run


def newest_first(run: Run) -> list[Path]:
    return sorted(run.checkpoints_path.iterdir(), reverse=True)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(stopped: tuple[Workers, Run], reference: Run) -> None:
    workers, original = stopped
    run = workers.copy(original, "damaged")
    newest, second, _ = newest_first(run)
    os.truncate(newest / "optimizer.pt", (newest / "optimizer.pt").stat().st_size - 1)
    raw = bytearray((second / "adapter" / "adapter_model.safetensors").read_bytes())
    raw[-1] ^= 1
    (second / "adapter" / "adapter_model.safetensors").write_bytes(raw)
    workers.complete(run)
    told = [event for event in e2e.only(NoticeEvent, run) if event.code == "checkpoint_damaged"]
    assert [event.message for event in told] == [
        f"{newest.name}: optimizer.pt is damaged.",
        f"{second.name}: adapter/adapter_model.safetensors is damaged.",
    ]
    assert {event.level for event in told} == {"warning"}
    assert_same_result(run, reference)


def test_what_cannot_be_resumed_exactly_is_refused(stopped: tuple[Workers, Run]) -> None:
    workers, original = stopped
    damaged, other_data, reread = (workers.copy(original, name) for name in ("all", "data", "reread"))
    before = len(e2e.steps(original))
    for path in newest_first(damaged):
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["step"] += 1
        (path / "manifest.json").write_text(json.dumps(manifest))
    workers.resume(damaged)
    assert e2e.failure(damaged).reason == f"Run {damaged.id} has no valid checkpoint to go on from."
    told = [code for code in e2e.notice_codes(damaged) if code not in ("device", "checkpointing")]
    assert told == ["checkpoint_damaged"] * 3
    for file, what in ((workers.train_data, "The training data"), (workers.eval_data, "What is held out")):
        kept = file.read_text()
        file.write_text(kept.replace("billing", "shipping", 1))
        assert file.read_text() != kept
        try:
            workers.resume(other_data)
            last = e2e.failure(other_data)
        finally:
            file.write_text(kept)
        assert last.reason.startswith(f"{what} has changed since step-")
    assert "new run" in last.hint
    # The same files, whose rows another version had read in another way.
    for path in newest_first(reread):
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["data_sha256"] = "0" * 64
        manifest["manifest_sha256"] = hash_manifest(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))
    workers.resume(reread)
    assert "their rows are read differently by this version" in e2e.failure(reread).reason
    for run in (damaged, other_data, reread):
        assert len(e2e.steps(run)) == before
        assert len(newest_first(run)) == 3


@pytest.mark.long
def test_a_run_whose_template_writes_the_time_goes_on_at_another(workers: Workers, tmp_path: Path) -> None:
    template = tmp_path / "timed.jinja"
    template.write_text(
        "{{ strftime_now('%d %b %Y, %H:%M:%S.%f') }}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    run = workers.start("timed", e2e.held_at(6), template={"file": str(template)})
    e2e.stop_at(run, 6)
    workers.complete(run)
    assert list(read_history(run).loss.steps) == list(range(1, e2e.STEPS + 1))


def test_another_base_of_the_same_shape_is_refused(stopped: tuple[Workers, Run], tiny_model_dir: Path) -> None:
    workers, original = stopped
    run = workers.copy(original, "base")
    weights = tiny_model_dir / "model.safetensors"
    kept = weights.read_bytes()
    raw = bytearray(kept)
    raw[-1] ^= 1
    weights.write_bytes(raw)
    try:
        workers.resume(run)
        last = e2e.failure(run)
    finally:
        weights.write_bytes(kept)
    assert last.reason.startswith(f"The base model {tiny_model_dir} has changed since step-")


@pytest.fixture
def wide_model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A model of some megabytes, so that its file has a middle."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = copy_model(tiny_model_dir, tmp_path / "wide")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_model_dir, intermediate_size=4096)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(model)
    return model


@pytest.mark.long
def test_a_base_changed_in_its_middle_is_refused_by_continue_and_by_chat(workers: Workers, wide_model: Path) -> None:
    run = workers.held("middle", 6, model={"base": str(wide_model)})
    e2e.kill(run)
    weights = wide_model / "model.safetensors"
    facts, kept = weights.stat(), weights.read_bytes()
    assert len(kept) > 3 << 20
    middle = len(kept) // 2
    weights.write_bytes(kept[:middle] + bytes(1 << 16) + kept[middle + (1 << 16) :])
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    done = len(e2e.steps(run))
    with (
        workers.environment(),
        contextlib.closing(open_session(run)) as session,
        pytest.raises(UserError, match=f"The base model {wide_model} has changed since"),
    ):
        session.prepare(lambda _detail, _done, _total: None)
    workers.resume(run)
    last = e2e.failure(run)
    assert last.reason.startswith(f"The base model {wide_model} has changed since step-")
    assert "Put it back" in last.hint
    assert len(e2e.steps(run)) == done
    weights.write_bytes(kept)
    workers.resume(run, e2e.held_at(12))
    e2e.wait_until_step(run, 12)
    e2e.kill(run)
    assert "resumed" in e2e.notice_codes(run)


@pytest.mark.long
def test_a_fingerprint_of_an_earlier_version_goes_on(
    stopped: tuple[Workers, Run], reference: Run, tiny_model_dir: Path
) -> None:
    workers, original = stopped
    run = workers.copy(original, "earlier")
    for path in newest_first(run):
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["base_sha256"] = ends_fingerprint(tiny_model_dir)
        manifest["manifest_sha256"] = hash_manifest(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))
    workers.complete(run)
    assert_same_result(run, reference)
    newest = json.loads((newest_first(run)[0] / "manifest.json").read_text())
    assert newest["base_sha256"].startswith("sha256:")


@pytest.mark.timeout(600)
def test_packed_mapped_mixed_and_split_data_survive_a_kill(workers: Workers, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in e2e.write_rows(tmp_path / "rows.jsonl", 30, seed=3).read_text().splitlines()]
    asked = [{"q": row["messages"][0]["content"], "a": row["messages"][1]["content"]} for row in rows]
    write_parquet(tmp_path / "asked.parquet", [*asked, {"q": "unanswered", "a": ""}])
    entry = {"file_name": "rows.jsonl", "formatting": "openai", "columns": {"messages": "messages"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    data = {
        "train": [str(tmp_path / "asked.parquet"), str(tmp_path / "dataset_info.json#mine")],
        "columns": {"user": "q", "assistant": "a"},
        "weights": [2, 0.5],
        "eval": None,
        "eval_share": 0.1,
    }
    run = workers.held("sources", 8, data=data, train={"max_steps": 12})
    e2e.kill(run)
    workers.complete(run)
    told = e2e.only(DataEvent, run)
    assert len(told) == 2
    assert told[0].dropped == told[1].dropped
    assert told[0].rows == 61 == told[0].used + sum(told[0].dropped.values())
    # Both files hold the same conversations, and copies stay together: three of each are held out.
    assert told[0].dropped == {"empty_answer": 1, "held_out": 6, "not_sampled": 13}
    assert e2e.only(EvalEvent, run)[-1].rows == 6
    assert e2e.only(StepEvent, run)[-1].step == 12

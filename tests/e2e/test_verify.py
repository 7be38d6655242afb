"""Audits of real runs: what is honest comes out the same to the last bit, and what was changed is found and named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.audit.job import AuditJob
from core.audit.result import Audit
from core.errors import UserError
from core.helper import finding_core
from core.runs.chain import CHAIN_NAME
from core.runs.client import ControlClient
from core.runs.events import RollbackEvent
from core.runs.store import Run
from tests.waiting import wait_for

from .test_preference import write_rows as write_pairs
from .workers import PATIENCE, Workers, exit_code, finish, kill, notice_codes, only, signal_worker, wait_until_step

#: A short run: every second step a checkpoint, every third an evaluation; all of them are kept.
SHORT: dict[str, dict[str, Any]] = {
    "train": {"max_steps": 8},
    "eval": {"every_steps": 3, "exact_match": False, "samples": 1},
    "checkpoint": {"every_steps": 2, "keep": 9},
}


def start(workers: Workers, name: str, variables: dict[str, str] | None = None, **sections: dict[str, Any]) -> Run:
    names = {**SHORT, **sections}
    return workers.start(name, variables, **{key: SHORT.get(key, {}) | sections.get(key, {}) for key in names})


def audit(workers: Workers, run: Run, *, spans: int = 99, whole: bool = False) -> Audit:
    with workers.environment():
        return AuditJob(run, spans=spans, seed=1, whole=whole).run()


def assert_verified(found: Audit, spans: int) -> None:
    assert found.verdict == "verified", found
    assert [span.outcome for span in found.spans] == ["equal"] * spans, found
    assert found.chain.head is not None


def sentences(found: Audit) -> list[str]:
    return [difference.what for difference in (*found.chain.differences, *found.inputs)]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[tuple[Workers, Run]]:
    """A finished run in which rates and intervals were set, and a checkpoint was asked for."""
    workers = Workers(tmp_path_factory.mktemp("honest"), tiny_model_dir)
    run = start(workers, "honest", train={"max_steps": 10})
    wait_until_step(run, 2)
    with ControlClient(run, timeout=PATIENCE) as client:
        client.request("set", **{"train.learning_rate": 1e-3, "eval.every_steps": 2})
        client.request("checkpoint")
    finish(run)
    yield workers, run
    workers.close()


def test_a_run_with_commands_is_equal_in_every_byte_and_is_only_read(honest: tuple[Workers, Run]) -> None:
    workers, run = honest
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    found = audit(workers, run, spans=3)
    assert_verified(found, 3)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert list((workers.home / "audits").iterdir()) == []
    whole = audit(workers, run, whole=True)
    assert [(span.begin, span.end, span.outcome) for span in whole.spans] == [(0, 10, "equal")]


def flip(path: Path, at: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_flipped_bit_is_named_with_its_tensor_and_both_values(honest: tuple[Workers, Run]) -> None:
    workers, original = honest
    run = workers.copy(original, "flipped")
    flip(run.path / "checkpoints/step-00000004/adapter/adapter_model.safetensors")
    found = audit(workers, run, spans=0)
    assert found.verdict == "differs"
    file = "checkpoints/step-00000004/adapter/adapter_model.safetensors"
    assert [difference.file for difference in found.chain.differences] == [file]
    # The interval that ends with it is executed again, and tells what it was.
    (span,) = found.spans
    (difference,) = span.differences
    assert (span.end, span.outcome, difference.file, difference.step) == (4, "differs", file, 4)
    assert difference.tensor is not None
    assert "lora" in difference.tensor
    assert difference.recorded != difference.found


def test_a_flipped_bit_of_the_result_is_named(honest: tuple[Workers, Run]) -> None:
    workers, original = honest
    run = workers.copy(original, "result")
    flip(run.path / "adapter/adapter_model.safetensors")
    assert sentences(audit(workers, run, spans=0)) == [
        "adapter/adapter_model.safetensors is not what was written: its SHA-256 is another."
    ]


def edit_step(lines: list[bytes]) -> None:
    place = next(place for place, line in enumerate(lines) if b'"step": 5,' in line and b'"type": "step"' in line)
    lines[place] = lines[place].replace(b'"loss": ', b'"loss": 1')


def test_an_edited_event_is_named_by_the_chain_and_by_the_replay(honest: tuple[Workers, Run]) -> None:
    workers, original = honest
    run = workers.copy(original, "edited")
    lines = run.events_path.read_bytes().splitlines(keepends=True)
    edit_step(lines)
    run.events_path.write_bytes(b"".join(lines))
    found = audit(workers, run, spans=0)
    (told,) = found.chain.differences
    assert "(a step event of step 5) was changed" in told.what
    assert (told.step, found.verdict) == (5, "differs")
    # Without the chain, as of an earlier version, the replay finds it.
    (run.path / CHAIN_NAME).unlink()
    alone = audit(workers, run, whole=True)
    assert alone.chain.head is None
    assert "no hash chain" in alone.chain.notes[0]
    (span,) = alone.spans
    (difference,) = span.differences
    assert (span.outcome, difference.what) == ("differs", "loss of step 5 came out otherwise.")
    assert str(difference.recorded).startswith("1")


def test_a_changed_option_is_named_and_the_run_is_executed_with_its_own(honest: tuple[Workers, Run]) -> None:
    workers, original = honest
    run = workers.copy(original, "option")
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("learning_rate = 0.005", "learning_rate = 0.006"))
    assert run.config_path.read_text() != text
    found = audit(workers, run, spans=1)
    assert sentences(found) == ["run.toml: train.learning_rate changed from 0.005 to 0.006."]
    assert [span.outcome for span in found.spans] == ["equal"]
    assert found.verdict == "differs"


@contextlib.contextmanager
def changed(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    kept = path.read_bytes()
    path.write_bytes(change(kept))
    assert path.read_bytes() != kept
    try:
        yield
    finally:
        path.write_bytes(kept)


def test_a_changed_row_is_named_by_its_line(honest: tuple[Workers, Run]) -> None:
    workers, run = honest

    def change(raw: bytes) -> bytes:
        lines = raw.splitlines(keepends=True)
        lines[6] = lines[6].replace(b"ticket", b"basket")
        return b"".join(lines)

    with changed(workers.train_data, change):
        found = audit(workers, run, spans=2)
    assert sentences(found) == [
        f"The data file {workers.train_data} has changed since the run began.",
        "A row was changed since the run learned it: train.jsonl line 7.",
    ]
    assert [(span.outcome, span.reason) for span in found.spans] == [("skipped", "The rows are others.")] * 2


def test_another_base_is_named_by_its_file(honest: tuple[Workers, Run], tiny_model_dir: Path) -> None:
    workers, run = honest
    weights = tiny_model_dir / "model.safetensors"
    with changed(weights, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])):
        found = audit(workers, run, spans=1)
    assert sentences(found) == [
        f"The base is not the one of the training: model.safetensors in {tiny_model_dir} is another."
    ]
    assert found.spans[0].outcome == "skipped"


def parked(run: Run) -> None:
    wait_until_step(run, 3)
    with ControlClient(run, timeout=PATIENCE) as client:
        client.request("park")
    wait_for(lambda: run.state().parked and run.state().socket, PATIENCE, "the run to be parked")
    with ControlClient(run, timeout=PATIENCE) as client:
        client.request("resume")


def killed_and_stopped(workers: Workers, run: Run) -> None:
    wait_until_step(run, 3)
    kill(run)
    workers.resume(run)
    wait_until_step(run, 5)
    signal_worker(run, signal.SIGTERM)
    if exit_code(run) == 3:
        workers.resume(run)


def test_a_run_that_was_killed_stopped_parked_and_continued(workers: Workers) -> None:
    run = start(workers, "rough", train={"max_steps": 20})
    killed_and_stopped(workers, run)
    parked(run)
    finish(run)
    assert_verified(audit(workers, run, whole=True), 1)


@pytest.mark.parametrize(
    "sections",
    [
        {"method": {"name": "full", "dropout": 0.0}},
        {"method": {"name": "lora", "neftune_alpha": 5.0, "init": "pissa"}},
        {"train": {"packing": True}},
        {"eval": {"every_steps": 1, "patience": 2, "min_delta": 5.0, "baseline": True}},
    ],
    ids=["full weights", "noise and another beginning", "packing", "early stopping"],
)
def test_honest_runs_of_other_kinds(workers: Workers, sections: dict[str, dict[str, Any]]) -> None:
    run = start(workers, "kind", **sections)
    finish(run)
    assert_verified(audit(workers, run, whole=True), 1)


def test_an_honest_run_of_preferences(workers: Workers) -> None:
    rows, measured = (
        write_pairs(workers.directory / name, "dpo", count, seed)
        for name, count, seed in (("dpo.jsonl", 24, 1), ("dpo-eval.jsonl", 6, 2))
    )
    run = start(
        workers,
        "pairs",
        data={"train": str(rows), "eval": str(measured)},
        train={"objective": "dpo", "learning_rate": 1e-3, "max_steps": 6},
    )
    finish(run)
    assert_verified(audit(workers, run, spans=2), 2)


def test_kill_leaves_nothing_of_an_audit_and_ctrl_c_neither(honest: tuple[Workers, Run]) -> None:
    workers, run = honest
    home = workers.home / "audits"
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        environment = finding_core(os.environ) | {"LOCALTUNE_HOME": str(workers.home), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tui", "verify", str(run.path), "--whole"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: list(home.glob("work-*/*/*/checkpoints")), PATIENCE, "the replay to begin")
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        wait_for(lambda: not list(home.iterdir()), PATIENCE, "the copies to be removed")


def test_a_live_run_is_refused(workers: Workers) -> None:
    run = start(workers, "live", train={"max_steps": 5000})
    wait_until_step(run, 1)
    with pytest.raises(UserError, match="only a run that is over can be verified"):
        audit(workers, run)


def test_a_step_that_ran_out_of_memory_is_cut_again(workers: Workers) -> None:
    from . import test_out_of_memory as shortage

    run = shortage.start(workers, {"backward": [5, 9]}, train={"max_steps": 6})
    finish(run)
    assert notice_codes(run).count("memory_cut") == 2
    assert_verified(audit(workers, run, spans=3), 3)
    manifest = json.loads((run.checkpoints_path / "step-00000006/manifest.json").read_text())
    first = json.loads((run.checkpoints_path / "step-00000002/manifest.json").read_text())
    assert manifest["token_budget"] < 4096
    assert manifest["token_budget"] <= first["token_budget"]


def test_a_run_that_went_back_for_a_loss_spike_is_equal_killed_or_not(workers: Workers) -> None:
    from . import test_loss_spikes as spikes

    spikes.write_nonsense(workers, (27, 28, 29))
    # Checkpoints between the good one and the spike, of steps that are left out, and after both.
    run = spikes.start(workers, "back", "rollback", every=1, keep=99)
    finish(run)
    (rollback,) = only(RollbackEvent, run)
    assert rollback.step < 26
    whole = audit(workers, run, whole=True)
    assert_verified(whole, 2)
    assert [(span.begin, span.end) for span in whole.spans] == [(0, rollback.step), (rollback.step, 32)]
    flip(run.path / "checkpoints/step-00000030/adapter/adapter_model.safetensors")
    assert audit(workers, run, spans=0).verdict == "differs"

    killed = spikes.start(workers, "killed", "rollback", every=4, keep=99)
    wait_for(lambda: only(RollbackEvent, killed), PATIENCE, "the rollback", interval=0.001)
    kill(killed)
    workers.resume(killed)
    finish(killed)
    assert len(only(RollbackEvent, killed)) == 2
    assert_verified(audit(workers, killed, whole=True), 2)

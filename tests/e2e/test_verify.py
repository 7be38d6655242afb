"""Audits of real runs: honest runs replay bit for bit, and every change is found and named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from core.audit.chain_check import check_chain, read_sealed
from core.audit.job import audit_job, replay_checkpoint
from core.audit.result import Audit
from core.helper import finding_core
from core.jobs.job import Job, JobProgress
from core.runs.control.client import ControlClient
from core.runs.record.chain import CHAIN_NAME, NOTHING, canonical, digest_of, short
from core.runs.record.events import NoticeEvent, RollbackEvent, encode_event
from core.runs.record.store import Run
from core.small_files import hash_file
from tests.forking import FAULT_VARIABLE
from tests.waiting import wait_for

from . import test_distributed as team
from . import workers as e2e
from .test_preference import write_rows as write_pairs
from .workers import Workers

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
        return audit_job(run, spans=spans, seed=1, whole=whole).run()


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
    run = start(workers, "honest", e2e.held_at(0, 1))
    e2e.wait_until_listening(run)
    with ControlClient(run, timeout=e2e.PATIENCE) as client:
        client.request("pause")
        client.request("set", **{"train.learning_rate": 1e-3, "eval.every_steps": 2})
        client.request("resume")
        e2e.wait_until_step(run, 1)
        client.request("checkpoint")
    e2e.finish(run)
    yield workers, run
    workers.close()


def test_a_run_with_commands_is_equal_in_every_byte_and_is_only_read(honest: tuple[Workers, Run]) -> None:
    workers, run = honest
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert_verified(audit(workers, run, spans=3), 3)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert list((workers.home / "audits").iterdir()) == []


def flip(path: Path, at: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


WEIGHTS = "adapter/adapter_model.safetensors"
OF_4 = f"checkpoints/step-00000004/{WEIGHTS}"


def edit(run: Run, kind: str, number: int, old: bytes, new: bytes) -> None:
    """Change the event of a kind and a step."""
    lines = run.events_path.read_bytes().splitlines(keepends=True)
    marks = f'"step": {number},'.encode(), f'"type": "{kind}"'.encode()
    (place,) = (place for place, line in enumerate(lines) if all(mark in line for mark in marks))
    lines[place] = lines[place].replace(old, new)
    run.events_path.write_bytes(b"".join(lines))


def test_what_was_changed_is_named_by_the_chain_and_by_the_replay(honest: tuple[Workers, Run]) -> None:
    workers, original = honest
    run = workers.copy(original, "changed")
    flip(run.path / OF_4)
    flip(run.path / WEIGHTS)
    edit(run, "step", 4, b'"loss": ', b'"loss": 1')
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("learning_rate = 0.005", "learning_rate = 0.006"))
    found = audit(workers, run, spans=0)
    line = run.events_path.read_bytes().partition(b'"loss": 1')[0].count(b"\n") + 1
    assert sentences(found) == [
        f"events.jsonl: line {line} (a step event of step 4) was changed.",
        "step-00000004: adapter/adapter_model.safetensors has changed since it was written: its SHA-256 differs.",
        "run.toml: train.learning_rate changed from 0.005 to 0.006.",
        f"{WEIGHTS} has changed since it was written: its SHA-256 differs.",
    ]
    # The interval that ends with the damage is executed again with the run's options, and shows the original.
    (span,) = found.spans
    loss, weight = span.differences
    assert (span.end, span.outcome, found.verdict) == (4, "differs", "differs")
    assert (loss.what, loss.step) == ("loss of step 4 came out otherwise.", 4)
    assert str(loss.recorded).startswith("1")
    assert (weight.file, weight.step) == (OF_4, 4)
    assert "lora" in str(weight.tensor)
    assert weight.recorded != weight.found


@pytest.mark.long
def test_without_a_chain_the_replay_finds_what_was_changed(honest: tuple[Workers, Run]) -> None:
    workers, original = honest
    run = workers.copy(original, "unsealed")
    (run.path / CHAIN_NAME).unlink()
    excuse = encode_event(NoticeEvent(level="warning", code="checkpoint_failed", message="")).encode()
    edit(run, "step", 8, b'{"t"', excuse + b'{"t"')
    flip(run.path / WEIGHTS)
    found = audit(workers, run, whole=True)
    assert found.chain.head is None
    assert "no hash chain" in found.chain.notes[0]
    assert sentences(found) == [f"{WEIGHTS} is not that of step-00000008, which the result is a copy of."]
    (span,) = found.spans
    assert (span.begin, span.outcome, found.complete) == (0, "equal", False)
    assert found.notes[-1].endswith(f"that its steps after {span.end} follow from the base is not proven.")


def reseal(run: Run, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Make a sound chain over a run as it is now, with links changed, as somebody can who knows how it is made."""
    path, prev, end = run.path / CHAIN_NAME, NOTHING, 0
    links = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines = run.events_path.read_bytes().splitlines(keepends=True)
    change(links)
    for link in links:
        count = len(link["events"]["lines"]) // len(short(b""))
        mine, lines = lines[:count], lines[count:]
        begin, end = end, end + sum(map(len, mine))
        digits = "".join(short(line.rstrip(b"\n")) for line in mine)
        link["events"] = {"from": begin, "to": end, "lines": digits, "sha256": sha256(b"".join(mine)).hexdigest()}
        link["prev"] = prev
        prev = link["link"] = digest_of(link)
    path.write_bytes(b"".join(canonical(link) + b"\n" for link in links))


@pytest.mark.long
def test_weights_that_are_reported_to_be_of_another_version_are_not_verified(honest: tuple[Workers, Run]) -> None:
    workers, original = honest
    run = workers.copy(original, "excused")
    flip(run.path / OF_4)
    path = run.path / "checkpoints/step-00000004/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][WEIGHTS]["sha256"] = hash_file(run.path / OF_4)
    path.write_text(json.dumps(manifest))

    def change(links: list[dict[str, Any]]) -> None:
        links[0]["body"]["software"]["torch"] = "2.0"
        (link,) = (link for link in links if link["kind"] == "checkpoint" and link["body"]["step"] == 4)
        link["body"]["manifest"] = manifest

    reseal(run, change)
    found = audit(workers, run)
    assert (found.verdict, sentences(found)) == ("unproven", [])
    inexact = next(span for span in found.spans if span.outcome != "equal")
    assert (inexact.end, inexact.outcome) == (4, "inexact")
    assert "torch changed from 2.0 to " in inexact.reason


@pytest.mark.long
def test_a_run_that_was_killed_stopped_parked_and_continued(workers: Workers) -> None:
    run = start(workers, "rough", e2e.held_at(3), train={"max_steps": 16})
    e2e.wait_until_step(run, 3)
    e2e.kill(run)
    workers.resume(run, e2e.held_at(5))
    e2e.stop_at(run, 5)
    workers.resume(run, e2e.held_at(7))
    e2e.wait_until_step(run, 7)
    with ControlClient(run, timeout=e2e.PATIENCE) as client:
        client.request("park")
    e2e.wait_until_parked(run)
    with ControlClient(run, timeout=e2e.PATIENCE) as client:
        client.request("resume")
    e2e.finish(run)
    assert_verified(audit(workers, run, whole=True), 1)


@pytest.mark.long
@pytest.mark.parametrize(
    "sections",
    [
        {
            "method": {"name": "full", "dropout": 0.0},
            "train": {"packing": True},
            "eval": {"every_steps": 1, "patience": 2, "min_delta": 5.0, "baseline": True},
        },
        {"method": {"name": "lora", "neftune_alpha": 5.0, "init": "pissa"}, "train": {"max_steps": 4}},
        {"data": {}, "train": {"objective": "dpo", "learning_rate": 1e-3, "max_steps": 4}},
    ],
    ids=["full weights, packing, stopped early", "noise, another beginning", "preferences"],
)
def test_honest_runs_of_other_kinds(workers: Workers, sections: dict[str, dict[str, Any]]) -> None:
    if "data" in sections:
        write_pairs(workers.train_data, "dpo", 24, 1)
        write_pairs(workers.eval_data, "dpo", 6, 2)
    run = start(workers, "kind", **sections)
    e2e.finish(run)
    assert_verified(audit(workers, run, whole=True), 1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code", "begun"),
    [(signal.SIGKILL, -signal.SIGKILL, "work-*/*/*/checkpoints"), (signal.SIGINT, 130, "work-*")],
    ids=["killed in the replay", "Ctrl-C"],
)
def test_an_ended_audit_leaves_nothing(
    honest: tuple[Workers, Run], number: signal.Signals, code: int, begun: str
) -> None:
    workers, run = honest
    home = workers.home / "audits"
    environment = finding_core(os.environ) | {"LOCALTUNE_HOME": str(workers.home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tui", "verify", str(run.path), "--whole"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(home.glob(begun)), e2e.PATIENCE, "the audit to begin")
    process.send_signal(number)
    assert process.wait(e2e.PATIENCE) == code
    wait_for(lambda: not list(home.iterdir()), e2e.PATIENCE, "the copies to be removed")


@pytest.mark.long
def test_a_step_that_ran_out_of_memory_is_cut_again(workers: Workers) -> None:
    from . import test_out_of_memory as shortage

    run = shortage.start(workers, {"backward": [5, 9]}, train={"max_steps": 6})
    e2e.finish(run)
    assert e2e.notice_codes(run).count("memory_cut") == 2
    assert_verified(audit(workers, run, spans=3), 3)
    manifest = json.loads((run.checkpoints_path / "step-00000006/manifest.json").read_text())
    first = json.loads((run.checkpoints_path / "step-00000002/manifest.json").read_text())
    assert manifest["token_budget"] < 4096
    assert manifest["token_budget"] <= first["token_budget"]


@pytest.mark.long
def test_a_run_that_went_back_for_a_loss_spike_is_equal_killed_or_not(workers: Workers) -> None:
    from . import test_loss_spikes as spikes

    spikes.write_nonsense(workers, (27, 28, 29))
    # Checkpoints between the good one and the spike, of steps that are left out, and after both.
    run = spikes.start(workers, "back", "rollback", every=2, keep=99)
    e2e.finish(run)
    (rollback,) = e2e.only(RollbackEvent, run)
    assert rollback.step < 26
    whole = audit(workers, run, whole=True)
    assert_verified(whole, 2)
    assert [(span.begin, span.end) for span in whole.spans] == [(0, rollback.step), (rollback.step, 32)]
    flip(run.path / "checkpoints/step-00000030/adapter/adapter_model.safetensors")
    assert audit(workers, run, spans=0).verdict == "differs"
    # A replay of the damaged checkpoint leads over the rollback too, with nothing kept.
    for path in run.checkpoints_path.iterdir():
        shutil.rmtree(path)
    with workers.environment():
        job: Job[JobProgress, None] = Job("the index", lambda job: replay_checkpoint(run, 30, range(29, 32), job))
        job.run()
    assert [path.name for path in run.checkpoints_path.iterdir()] == ["step-00000030"]
    assert check_chain(run, read_sealed(run)).differences == ()

    killed = spikes.start(workers, "killed", "rollback", every=4, keep=99, variables=e2e.HELD_BACK)
    wait_for(lambda: e2e.only(RollbackEvent, killed), e2e.PATIENCE, "the rollback", interval=0.001)
    e2e.kill(killed)
    workers.complete(killed)
    assert len(e2e.only(RollbackEvent, killed)) == 2
    assert_verified(audit(workers, killed, whole=True), 2)


@pytest.mark.long
def test_a_run_of_two_processes_that_lost_one_was_stopped_and_went_on_as_one(workers: Workers) -> None:
    run = start(
        workers,
        "team",
        {FAULT_VARIABLE: "fork_ranks:0;hold:5,9"},
        distributed={"processes": 2, "timeout": 60.0},
        train={"max_steps": 14},
        checkpoint={"every_steps": 4, "keep": 9},
    )
    e2e.wait_until_step(run, 5)
    ControlClient(run, timeout=e2e.PATIENCE).request("set", **{"train.learning_rate": 1e-3})
    e2e.wait_until_step(run, 9)
    os.kill(team.pids_of(run)[1], signal.SIGKILL)
    team.wait_until_done_again(run, 9)
    assert "rank_lost" in e2e.notice_codes(run)
    e2e.signal_worker(run, signal.SIGTERM)
    assert e2e.exit_code(run) == 3
    team.set_processes(run, 1)
    workers.complete(run)
    whole = audit(workers, run, whole=True)
    assert_verified(whole, 2)
    assert [(span.begin, span.end) for span in whole.spans] == [(0, 9), (9, 14)]

    flip(run.path / OF_4)
    found = audit(workers, run, spans=0)
    (span,) = found.spans
    assert (span.end, span.outcome, found.verdict) == (4, "differs", "differs")
    assert [difference.file for difference in span.differences] == [OF_4]

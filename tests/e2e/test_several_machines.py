"""A run over two machines: two network namespaces, with a fake ssh between them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.launch import launcher
from core.runs.record.events import NoticeEvent
from core.runs.record.state import read_ranks
from core.runs.record.store import Run
from tests.core.launch.nodes.fake_ssh import FakeSsh
from tests.namespaces import TwoMachines, listening, two_machines
from tests.waiting import wait_for

from .workers import PATIENCE, Workers, finish, only, pid_of, steps, wait_until_step


@pytest.fixture
def machines() -> Iterator[TwoMachines]:
    with two_machines() as made:
        yield made


def remote_ranks(run: Run) -> list[psutil.Process]:
    """The processes on the other machine that hold a rank."""
    found = psutil.Process(pid_of(run)).children(recursive=True)
    return [process for process in found if "core.worker.supervise.remote_rank" in process.cmdline()]


@pytest.mark.long
def test_two_machines_train_as_one_and_survive_the_loss_of_one(
    workers: Workers, machines: TwoMachines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, Any] = {
        "method": {"name": "lora", "dropout": 0.0},
        "train": {"max_steps": 8, "batch_size": 4},
        "eval": {"every_steps": None, "exact_match": False},
        "data": {"train": str(workers.train_data), "eval": None},
        "checkpoint": {"every_steps": 3},
    }
    alone = workers.start("alone", **recipe)
    finish(alone)

    ssh = FakeSsh(tmp_path / "fake-ssh", monkeypatch)
    there = tmp_path / "there"
    there.mkdir()
    prefix = " ".join(machines.other.prefix)
    ssh.machine("tower", f"export HOME={there} LOCALTUNE_HOME={there}/store; prefix='{prefix}'")
    command = launcher.worker_command
    monkeypatch.setattr(
        launcher, "worker_command", lambda run, *, resume=False: [*machines.head.prefix, *command(run, resume=resume)]
    )
    distributed = {"hosts": "tower", "address": machines.head.address, "port": 29_517, "timeout": 30, "restarts": 1}
    run = workers.start("spread", workers.held_anew(3), **recipe, distributed=distributed)

    # It goes on from the checkpoint of the step that it is held at, so it is held once.
    wait_until_step(run, 3)
    assert listening(pid_of(run)) == {machines.head.address}
    (rank,) = remote_ranks(run)
    assert listening(rank.pid) == {machines.other.address}
    shown = wait_for(lambda: [one for one in read_ranks(run.path) if one.device], PATIENCE, "the processes")
    assert [(one.rank, one.device) for one in shown] == [(0, "cpu"), (1, "cpu")]
    os.kill(rank.pid, signal.SIGKILL)

    finish(run)
    (lost,) = [notice.message for notice in only(NoticeEvent, run) if notice.code == "rank_lost"]
    assert lost.startswith("Process 1 on tower ")
    assert "goes on from step-00000003" in lost
    losses = {step.step: step.loss for step in steps(run)}
    # Adam makes much of the last bit of a gradient that is close to zero.
    assert list(losses.values()) == pytest.approx([step.loss for step in steps(alone)], rel=1e-4)
    wait_for(lambda: not list(there.glob("store/ranks/*")), PATIENCE, "the other machine to tidy up")
    # Compared once, started twice, and looked after in between.
    asked = [line for line in ssh.asked if line.startswith("-T ")]
    assert len(asked) == 4
    assert all("BatchMode=yes" in line for line in asked)

"""A job of Slurm with stand-ins for srun and scontrol: two real tasks that train as one run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from core.config.document import dump_config
from core.launch.slurm import SlurmJob
from core.runs.events import RanksEvent
from core.runs.ranks import read_ranks
from core.runs.store import complete_checkpoints, list_runs
from tests.core.launch.fake_slurm import FakeSlurm
from tests.waiting import wait_for

from .workers import PATIENCE, Workers, only, wait_until_step


def test_two_tasks_train_as_one_run_and_save_it_when_the_time_is_over(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workers.config(
        method={"name": "lora"}, train={"max_steps": 5000}, eval={"every_steps": None}, checkpoint={"every_steps": 2500}
    )
    (tmp_path / "tickets.toml").write_text(dump_config(config))
    monkeypatch.setenv("LOCALTUNE_HOME", str(workers.home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    slurm = FakeSlurm(tmp_path / "cluster", monkeypatch)
    job = SlurmJob(tmp_path / "tickets.toml", name="tickets", processes=2, cards=0, python=sys.executable)
    file = slurm.directory / "tickets.sbatch"
    file.write_text(job.batch_file())

    started = slurm.start(file, tasks=2)
    try:
        (run,) = wait_for(list_runs, PATIENCE, "the run to be made")
        wait_for(lambda: run.state().state == "training", PATIENCE, "the run to train")
        wait_until_step(run, 3)
        assert [(rank.rank, rank.device, rank.heard) for rank in read_ranks(run)] == [
            (0, "cpu", None),
            (1, "cpu", None),
        ]
    finally:
        started.send_signal(signal.SIGTERM)
        said, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 3, said
    assert slurm.requeued == ["4711"]
    state = run.state()
    assert (state.state, state.reason) == ("stopped", f"stopped by SIGTERM after step {state.step}")
    assert [path.name for path in complete_checkpoints(run)] == [f"step-{state.step:08d}"]
    (told,) = only(RanksEvent, run)
    assert len({rank["pid"] for rank in told.ranks}) == 2

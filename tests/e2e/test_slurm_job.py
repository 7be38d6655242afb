"""A job of Slurm with stand-ins for its programs: two real tasks that train as one run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from core.config.document import dump_config
from core.launch.slurm import SlurmJob
from core.runs.control.devices import take_beside
from core.runs.record.events import CheckpointEvent, NoticeEvent, RanksEvent, StoppedEvent
from core.runs.record.state import read_ranks
from core.runs.record.store import complete_checkpoints, list_runs
from tests.core.launch.fake_slurm import FakeSlurm
from tests.waiting import wait_for

from .workers import PATIENCE, Workers, only, steps, wait_until_step


@pytest.mark.long
def test_two_tasks_train_as_one_run_that_goes_on_after_its_time_and_ends_when_it_is_cancelled(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workers.config(
        method={"name": "lora"}, train={"max_steps": 5000}, eval={"every_steps": None}, checkpoint={"every_steps": 2500}
    )
    (tmp_path / "tickets.toml").write_text(dump_config(config))
    monkeypatch.setenv("LOCALTUNE_HOME", str(workers.home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    beside = take_beside(["cpu"], "another")
    slurm = FakeSlurm(tmp_path / "cluster", monkeypatch)
    job = SlurmJob(tmp_path / "tickets.toml", name="tickets", processes=2, cards=0, python=sys.executable)

    handed_in = slurm.sbatch(job.batch_file())
    try:
        (run,) = wait_for(list_runs, PATIENCE, "the run to be made")
        wait_for(lambda: run.state().state == "training", PATIENCE, "the run to train")
        wait_until_step(run, 3)
        told = [(rank.rank, rank.device, rank.heard) for rank in read_ranks(run.path)]
        assert told == [(0, "cpu", None), (1, "cpu", None)]
        slurm.notice()
        wait_for(lambda: slurm.requeued, PATIENCE, "the job to be queued again")
        saved = only(CheckpointEvent, run)[-1].step
        wait_for(lambda: run.state().state == "training", PATIENCE, "the run to go on")
        wait_until_step(run, saved + 3)
    finally:
        slurm.end()
        status = handed_in.wait(PATIENCE)
        beside.release()
    assert status == 3, slurm.log
    assert slurm.requeued == ["4711"]
    first, last = only(StoppedEvent, run)
    assert first.reason == f"stopped by SIGUSR1 after step {saved}"
    state = run.state()
    # Slurm signals the tasks, and the shell signals srun, in any order.
    assert state.state == "stopped"
    assert state.reason in [f"stopped by {name} after step {state.step}" for name in ("SIGTERM", "SIGUSR1")]
    assert last.step == state.step
    assert [path.name for path in complete_checkpoints(run)][-1] == f"step-{state.step:08d}"
    assert [step.step for step in steps(run)] == list(range(1, state.step + 1))
    assert len(list_runs()) == 1
    warned = [notice.message for notice in only(NoticeEvent, run) if notice.code == "shared_device"]
    assert warned == 2 * ["Run another is on the same device: both get slower, and their memory adds up."]
    for ranks in only(RanksEvent, run):
        assert len({rank["pid"] for rank in ranks.ranks}) == 2

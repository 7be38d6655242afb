"""Files for sbatch: their shell is checked, and run with stand-ins for Slurm's programs."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from core.errors import UserError
from core.launch.slurm import SlurmJob
from tests.core.launch.fake_slurm import FakeSlurm
from tests.waiting import wait_for

#: Stands in for Python: makes a run, and does as the file ``do`` says where it is a worker.
_PYTHON = """#!/bin/bash
here=$(dirname "$0")
if [ "$2" = tui ]; then
  echo "${@:3}" >> "$here/made"
  mkdir -p "$here/the run"; echo "$here/the run"; exit 0
fi
echo "$SLURM_PROCID of $SLURM_NTASKS at $MASTER_ADDR:$MASTER_PORT ${*:3}" >> "$here/tasks"
. "$here/do"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "cluster", monkeypatch)


def job(slurm: FakeSlurm, do: str, *, restarts: int = 2) -> Path:
    python = slurm.directory / "a python's $(name)"
    python.write_text(_PYTHON)
    python.chmod(0o755)
    (slurm.directory / "do").write_text(do)
    made = SlurmJob(Path("/data/it's.toml"), ["train.seed=1"], "tickets", 2, 1, 1, restarts, python=str(python))
    file = slurm.directory / "job.sbatch"
    file.write_text(made.batch_file())
    return file


def tasks(slurm: FakeSlurm) -> list[str]:
    return sorted((slurm.directory / "tasks").read_text().splitlines())


def test_each_task_is_told_its_place(slurm: FakeSlurm) -> None:
    done = slurm.start(job(slurm, "exit 0"), tasks=2)
    assert done.communicate()[0] == ""
    assert done.returncode == 0
    place = f"at 127.0.0.1:24711 {slurm.directory}/the run"
    assert tasks(slurm) == [f"0 of 2 {place}", f"1 of 2 {place}"]
    made = (slurm.directory / "made").read_text()
    assert made == "train /data/it's.toml --set train.seed=1 --name tickets --no-start\n"
    assert not list(slurm.directory.glob(".localtune-*"))


def test_a_job_whose_time_is_over_saves_a_checkpoint_and_is_queued_again(slurm: FakeSlurm) -> None:
    do = 'trap \'mkdir -p "$3/checkpoints/step-00000005"; exit 3\' TERM; touch "$here/ready-$SLURM_PROCID"\n'
    file = job(slurm, do + "while :; do sleep 0.05; done")
    started = slurm.start(file, tasks=2)
    wait_for(lambda: len(list(slurm.directory.glob("ready-*"))) == 2, 20, "both tasks")
    started.send_signal(signal.SIGTERM)
    assert started.communicate()[0] == ""
    assert started.returncode == 3
    assert slurm.requeued == ["4711"]
    (slurm.directory / "do").write_text("exit 0")
    (slurm.directory / "tasks").unlink()
    again = slurm.start(file, tasks=2)
    again.communicate()
    assert again.returncode == 0
    assert all(line.endswith("the run --resume") for line in tasks(slurm))
    assert len((slurm.directory / "made").read_text().splitlines()) == 1


def test_a_lost_process_starts_the_run_again_so_often(slurm: FakeSlurm) -> None:
    started = slurm.start(job(slurm, "exit 75", restarts=2), tasks=2)
    started.communicate()
    assert started.returncode == 75
    assert len(tasks(slurm)) == 6
    assert slurm.requeued == []


def test_a_run_that_failed_is_not_started_again(slurm: FakeSlurm) -> None:
    started = slurm.start(job(slurm, "exit 4"), tasks=2)
    started.communicate()
    assert started.returncode == 4
    assert len(tasks(slurm)) == 2


def test_a_run_that_somebody_stopped_stays_stopped(slurm: FakeSlurm) -> None:
    started = slurm.start(job(slurm, "exit 3"), tasks=1)
    started.communicate()
    assert started.returncode == 3
    assert slurm.requeued == []


@pytest.mark.parametrize("config", ["/a b/c.toml", "/it's.toml", "/$(touch x).toml", "/`x`;#.toml", '/"\\\\.toml'])
def test_the_shell_takes_any_name(config: str, tmp_path: Path) -> None:
    text = SlurmJob(Path(config), [f"model.base={config}"], time="2-00:00:00", partition="gpu,long").batch_file()
    file = tmp_path / "job"
    file.write_text(text)
    subprocess.run(["bash", "-n", str(file)], check=True)
    printed = "printf '%s\\n' " + text.split(" -m tui train ")[1].split(" --name ")[0]
    found = subprocess.run(["bash", "-c", printed], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert found == f"{config}\n--set\nmodel.base={config}\n"


def test_what_slurm_is_asked_for() -> None:
    job = SlurmJob(Path("/c.toml"), name="tickets", nodes=2, processes=4, cards=4, time="12:00:00", account="me")
    asked = [line for line in job.batch_file().splitlines() if line.startswith("#SBATCH ")]
    assert asked == [
        "#SBATCH --job-name=tickets",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=12:00:00",
        "#SBATCH --account=me",
        "#SBATCH --output=tickets-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@180",
    ]


@pytest.mark.parametrize("limits", [{"time": "tomorrow"}, {"partition": "a b"}, {"account": "x\n#SBATCH --wrap=id"}])
def test_what_slurm_would_not_take_is_refused(limits: dict[str, str]) -> None:
    with pytest.raises(UserError):
        SlurmJob(Path("/c.toml"), **limits)  # type: ignore[arg-type]

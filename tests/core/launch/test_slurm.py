"""Files for sbatch: their shell is checked, and run with stand-ins for Slurm's programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from core.errors import UserError
from core.launch.slurm import SlurmJob
from core.runs.record.state import RunState
from core.worker.supervise.verdict import EXIT_CRASHED, EXIT_LOST
from tests.cases import cases
from tests.core.launch.fake_slurm import FakeSlurm
from tests.waiting import wait_for

#: Stands in for Python: makes a run, and does as the file ``do`` says where it is a worker.
_PYTHON = Path(__file__).with_name("fake_python")
#: A worker that trains until a signal, and then saves once the file ``let`` exists.
_TRAINS = """
if [ "$4" = --resume ]; then exit 0; fi
trap 'touch "$here/told-$SLURM_PROCID"; stay let; save; exit 3' TERM USR1
touch "$here/ready-$SLURM_PROCID"
stay never
"""
#: Recorded states of a run.
_STATES = {
    "training": RunState(state="training", step=5),
    "finished": RunState(state="finished", reason="all steps are done", step=9),
    "refused": RunState(state="finished", step=9, refused="eval loss is 2.1, and 1.5 at most is wanted"),
    "stopped": RunState(state="stopped", reason='the word "state": "failed",', step=5),
    "failed": RunState(state="failed", reason="memory ran out", step=5),
}
PATIENCE = 60


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "cluster", monkeypatch)


def start(slurm: FakeSlurm, do: str, *, tasks: int = 2, restarts: int = 2) -> subprocess.Popen[str]:
    python = slurm.directory / "a python's $(name)"
    shutil.copy(_PYTHON, python)
    (slurm.directory / "do").write_text(do)
    for name, state in _STATES.items():
        state.write(slurm.directory / f"{name}.json")
    made = SlurmJob(
        Path("/data/it's.toml"), ["--set", "train.seed=1"], "tickets", 1, tasks, 1, restarts, python=str(python)
    )
    return slurm.sbatch(made.batch_file())


def tasks(slurm: FakeSlurm) -> list[str]:
    return sorted((slurm.directory / "tasks").read_text().splitlines())


def made(slurm: FakeSlurm) -> list[str]:
    return (slurm.directory / "made").read_text().splitlines()


def there(slurm: FakeSlurm, pattern: str, count: int = 2) -> None:
    wait_for(lambda: len(list(slurm.directory.glob(pattern))) == count, PATIENCE, pattern)


def let(slurm: FakeSlurm) -> None:
    """Let the tasks save."""
    (slurm.directory / "let").touch()


def trained(slurm: FakeSlurm) -> bool:
    """True if a step was saved."""
    return (slurm.directory / "the run/checkpoints/step-00000005").is_dir()


def test_each_task_gets_its_place(slurm: FakeSlurm) -> None:
    assert start(slurm, "exit 0").wait(PATIENCE) == 0
    assert slurm.log == ""
    place = f"at 127.0.0.1:24711 {slurm.directory}/the run"
    assert tasks(slurm) == [f"0 of 2 {place}", f"1 of 2 {place}"]
    assert made(slurm) == ["train /data/it's.toml --set train.seed=1 --name tickets --no-start"]
    assert not list(slurm.directory.glob(".localtune-*"))


def test_a_job_whose_time_is_nearly_over_saves_a_step_and_is_queued_again(slurm: FakeSlurm) -> None:
    job = start(slurm, _TRAINS)
    there(slurm, "ready-*")
    slurm.notice()
    let(slurm)
    assert job.wait(PATIENCE) == 0
    assert slurm.requeued == ["4711"]
    assert [line.endswith("the run --resume") for line in tasks(slurm)] == [False, True, False, True]
    assert len(made(slurm)) == 1
    assert slurm.log == ""


def saving(slurm: FakeSlurm) -> None:
    """The notice before the end of the time, until the tasks save."""
    slurm.notice()
    there(slurm, "told-*")


@pytest.mark.parametrize(
    ("begin", "end", "requeued"),
    [
        (None, FakeSlurm.end, []),
        (None, partial(FakeSlurm.end, tasks=False), []),
        (saving, FakeSlurm.end, []),
        (saving, FakeSlurm.record, []),
        (saving, partial(FakeSlurm.end, reason="TimeLimit"), ["4711"]),
    ],
    ids=["cancelled", "its shell alone", "cancelled as it saves", "cancelled just now", "time over as it saves"],
)
def test_a_job_saves_a_step_at_its_end_and_is_queued_again_only_if_its_time_was_over(
    slurm: FakeSlurm, begin: Callable[[FakeSlurm], None] | None, end: Callable[[FakeSlurm], None], requeued: list[str]
) -> None:
    job = start(slurm, _TRAINS)
    there(slurm, "ready-*")
    if begin is not None:
        begin(slurm)
    end(slurm)
    let(slurm)
    assert job.wait(PATIENCE) == (0 if requeued else 3)
    assert trained(slurm)
    assert slurm.requeued == requeued


def test_a_job_that_would_come_no_further_is_not_queued_again(slurm: FakeSlurm) -> None:
    job = start(slurm, _TRAINS.replace("save; ", ""))
    there(slurm, "ready-*")
    slurm.notice()
    let(slurm)
    assert (job.wait(PATIENCE), slurm.requeued) == (3, [])
    assert "The time was over before a step was saved" in slurm.log


@pytest.mark.parametrize("by", [FakeSlurm.notice, FakeSlurm.end])
def test_a_job_that_still_checks_its_data_ends_at_once(slurm: FakeSlurm, by: Callable[[FakeSlurm], None]) -> None:
    (slurm.directory / "checking").touch()
    job = start(slurm, "exit 0")
    there(slurm, "made", 1)
    by(slurm)
    assert job.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not (slurm.directory / "tasks").exists()
    assert not list(slurm.directory.glob(".localtune-*"))
    assert slurm.requeued == []
    assert ("The time was over" in slurm.log) == (by is FakeSlurm.notice)


def test_the_status_is_that_of_the_run_however_many_signals_come(slurm: FakeSlurm) -> None:
    job = start(slurm, "trap '' USR1; save; touch \"$here/ready-$SLURM_PROCID\"; stay let; exit 4")
    there(slurm, "ready-*")
    shell = slurm.shell
    for number in range(400):
        if number == 100:
            let(slurm)
        with contextlib.suppress(ProcessLookupError):
            os.kill(shell, signal.SIGUSR1)
    assert job.wait(PATIENCE) == 4
    assert len(tasks(slurm)) == 2
    assert slurm.requeued == []


def by_rank(first: str, second: str) -> str:
    """Scripts of the first and the second task."""
    return f'if [ "$SLURM_PROCID" = 0 ]; then {first}; else {second}; fi'


@pytest.mark.parametrize("second", [f"exit {EXIT_LOST}", "kill -9 $$", f"exit {EXIT_CRASHED}"])
def test_a_lost_process_starts_the_run_again_so_often(slurm: FakeSlurm, second: str) -> None:
    status = start(slurm, by_rank(f"record training; exit {EXIT_LOST}", second), restarts=2).wait(PATIENCE)
    assert status == (128 + signal.SIGKILL if "kill" in second else EXIT_LOST)
    assert len(tasks(slurm)) == 6
    assert slurm.requeued == []


@pytest.mark.parametrize(
    ("do", "code"),
    [
        (by_rank("record finished; kill -9 $$", "exit 0"), 0),
        (by_rank(f"record training; exit {EXIT_LOST}", "exit 4"), 4),
        ("save; exit 3", 3),
    ],
    ids=["killed after its end is recorded", "a process refuses", "stopped by somebody"],
)
def test_an_end_is_not_started_again(slurm: FakeSlurm, do: str, code: int) -> None:
    assert start(slurm, do).wait(PATIENCE) == code
    assert len(tasks(slurm)) == 2
    assert slurm.requeued == []


@pytest.mark.parametrize(("recorded", "code"), [("finished", 0), ("stopped", 3), ("failed", 4), ("refused", 5)])
@pytest.mark.parametrize("second", [f"exit {EXIT_LOST}", "kill -9 $$"])
def test_the_recorded_end_counts_for_all_tasks(slurm: FakeSlurm, recorded: str, code: int, second: str) -> None:
    assert start(slurm, by_rank(f"record {recorded}; exit {code}", second)).wait(PATIENCE) == code
    assert len(tasks(slurm)) == 2
    assert bool(list(slurm.directory.glob(".localtune-*"))) == (recorded == "stopped")


def test_the_end_of_an_earlier_job_is_not_that_of_this_one(slurm: FakeSlurm) -> None:
    run = slurm.directory / "the run"
    run.mkdir()
    _STATES["stopped"].write(run / "state.json")
    (slurm.directory / ".localtune-4711").write_text(f"{run}\n")
    assert start(slurm, f"exit {EXIT_LOST}", restarts=1).wait(PATIENCE) == EXIT_LOST
    assert len(tasks(slurm)) == 4


def test_a_run_that_fails_while_it_saves_at_the_end_of_its_time_is_not_queued_again(slurm: FakeSlurm) -> None:
    second = f'trap "" USR1; touch "$here/ready-1"; stay let; exit {EXIT_LOST}'
    job = start(slurm, by_rank("trap 'save; record failed; exit 4' USR1; touch \"$here/ready-0\"; stay never", second))
    there(slurm, "ready-*")
    slurm.notice()
    wait_for(lambda: trained(slurm), PATIENCE, "a checkpoint")
    let(slurm)
    assert job.wait(PATIENCE) == 4
    assert slurm.requeued == []


@cases("config", ["/a b/c.toml", "/it's.toml", "/$(touch x).toml", "/`x`;#.toml", '/"\\\\.toml'])
def test_the_shell_takes_any_name(config: str, tmp_path: Path) -> None:
    text = SlurmJob(
        Path(config), ["--set", f"model.base={config}"], time="2-00:00:00", partition="gpu,long"
    ).batch_file()
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
        "#SBATCH --signal=B:USR1@180",
    ]
    for limits in ({"time": "tomorrow"}, {"partition": "a b"}, {"account": "x\n#SBATCH --wrap=id"}):
        with pytest.raises(UserError):
            SlurmJob(Path("/c.toml"), **limits)  # type: ignore[arg-type]

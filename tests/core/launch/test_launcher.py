from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from core import paths
from core.config.schema import TrackingSection
from core.errors import UserError
from core.launch import launcher
from core.runs.record import store
from core.runs.record.events import FinishedEvent, StoppedEvent, encode_event
from core.runs.record.state import EventTail, RunState, hostname, start_identity
from core.runs.record.store import Run, complete_checkpoints, create_run, way_on
from core.tracking.position import TrackerFiles
from tests.core.runs.helpers import add_checkpoint, config_for, live_state, step_event, there, write_events
from tests.waiting import wait_for

FAKE = Path(__file__).with_name("fake_worker.py")


def is_locked(run: Run) -> bool:
    """True if a worker (or a launcher about to start one) holds the run's lock."""
    if not (run.path / "worker.lock").exists():
        return False
    descriptor = store.try_lock(run)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


@pytest.fixture(autouse=True)
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def command(run: Run, *, resume: bool = False) -> list[str]:
        return [sys.executable, "-m", "tests.core.launch.fake_worker", str(run.path), *(["--resume"] if resume else [])]

    monkeypatch.setattr(launcher, "worker_command", command)
    monkeypatch.setenv("FAKE_WORKER", "train")
    yield
    for child in launcher._children.values():
        child.kill()
        child.wait()
    launcher._children.clear()


def is_training(state: RunState) -> bool:
    return state.state == "training"


@pytest.mark.anew
def test_a_worker_inherits_only_its_lock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "report")
    monkeypatch.setenv("HF_TOKEN", "secret-1")
    monkeypatch.setenv("WANDB_API_KEY", "secret-2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-3")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    with (run.path / "open-in-the-starter").open("w") as leak:
        os.set_inheritable(leak.fileno(), True)
        launcher.launch(run)
        launcher.wait_until(run, lambda state: state.state == "finished", 30)
    report = json.loads((run.path / "report.json").read_text())
    assert report["session"] == report["pid"] != os.getsid(0)
    assert Path(report["cwd"]) == run.path
    assert report["umask"] == 0o077
    assert not [value for value in report["environment"].values() if "secret-" in value]
    assert report["environment"]["TOKENIZERS_PARALLELISM"] == "false"
    paths = {Path(target) for name, target in report["descriptors"].items() if name not in "012"}
    assert {path for path in paths if not str(path).startswith("/proc/")} == {run.path / "worker.lock"}
    assert report["descriptors"]["0"] == "/dev/null"
    assert report["descriptors"]["1"] == report["descriptors"]["2"] == str(run.log_path)
    assert run.log_path.stat().st_mode & 0o777 == 0o600


#: A process that may start the worker of a run.
STARTER = f"""
import os, pathlib, sys
from core.errors import UserError
from core.launch import launcher
from core.runs.record.store import Run
run = Run(pathlib.Path(sys.argv[1]))
launcher.worker_command = lambda run, resume=False: [sys.executable, {str(FAKE)!r}, str(run.path)]
"""


def test_a_worker_outlives_the_process_that_started_it(run: Run) -> None:
    program = f"{STARTER}launcher.launch(run)\nos.kill(os.getpid(), 9)\n"
    command = [sys.executable, "-c", program, str(run.path)]
    starter = subprocess.run(command, cwd=FAKE.parents[3], check=False, timeout=60)
    assert starter.returncode == -signal.SIGKILL
    state = launcher.wait_until(run, is_training, 30)
    assert state.pid is not None
    try:
        # Another may have its number by now; this is the one, at work, and nobody's child that is still here.
        assert start_identity(state.pid) == state.pid_started
        worker = psutil.Process(state.pid)
        assert worker.status() != psutil.STATUS_ZOMBIE
        assert worker.ppid() != os.getpid()
        assert os.getsid(state.pid) == state.pid != os.getsid(0)
        beat = run.state_path.stat().st_mtime_ns
        assert launcher.terminate(run)
        wait_for(lambda: run.state().state == "stopped")
        assert run.state_path.stat().st_mtime_ns > beat, "it was the worker that wrote its end"
    finally:
        if psutil.pid_exists(state.pid) and start_identity(state.pid) == state.pid_started:
            os.kill(state.pid, signal.SIGKILL)


def test_an_ended_worker_is_no_zombie_after_reaping(run: Run) -> None:
    pid = launcher.launch(run)
    launcher.wait_until(run, is_training, 30)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert run.state().state == "stopped"
    launcher.reap()
    assert not psutil.pid_exists(pid)


def test_an_immediate_death_is_reported_with_the_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "crash")
    launcher.launch(run)
    with pytest.raises(UserError) as caught:
        launcher.wait_until(run, is_training, 30)
    assert "ValueError: no such weights\ufffd[31m" in caught.value.message
    assert str(run.log_path) in caught.value.hint
    state = run.state()
    assert state.state == "failed"
    assert "code 1" in state.reason
    assert "no such weights" in launcher.failure_reason(run)


def test_a_second_worker_is_refused_while_the_first_lives(run: Run) -> None:
    assert not is_locked(run)
    with pytest.raises(UserError, match=r"still queued after 0\.1 s"):
        launcher.wait_until(run, is_training, 0.1)
    launcher.launch(run)
    # At once, before the first has written anything.
    with pytest.raises(UserError, match="already has a worker"):
        launcher.launch(run)
    launcher.wait_until(run, is_training, 30)
    with pytest.raises(UserError, match="already has a worker"):
        launcher.continue_run(run)
    with pytest.raises(UserError, match="already has a worker"):
        store.hold_worker_lock(run)  # as one that is started by hand does
    assert len((paths.home() / "starts").read_text().splitlines()) == 1


def test_of_many_launchers_at_once_one_wins(run: Run) -> None:
    program = f"""{STARTER}
sys.stdin.readline()
try: launcher.launch(run); print('started')
except UserError as error: print('refused')
"""
    command, pipe = [sys.executable, "-c", program, str(run.path)], subprocess.PIPE
    racers = [subprocess.Popen(command, cwd=FAKE.parents[3], stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    try:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        outcomes = [racer.communicate(timeout=60)[0].strip() for racer in racers]
        launcher.wait_until(run, is_training, 30)
    finally:
        launcher.terminate(run, force=True)
    assert sorted(outcomes) == ["refused"] * 3 + ["started"]
    assert len((paths.home() / "starts").read_text().splitlines()) == 1


def test_a_foreign_descriptor_is_not_taken_for_the_lock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "99999999999999999999", "x", "-1"):
        monkeypatch.setenv(store.LOCK_VARIABLE, value)
        descriptor = store.hold_worker_lock(run)
        assert os.path.samestat(os.fstat(descriptor), os.stat(run.path / "worker.lock"))
        assert is_locked(run)
        os.close(descriptor)


def test_an_ended_run_continues_with_resume_and_keeps_its_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = Mock(return_value=["/bin/true"])
    monkeypatch.setattr(launcher, "worker_command", command)
    add_checkpoint(run)
    # The last one is lost: its process is gone.
    for state, host in (("stopped", "elsewhere"), ("failed", "elsewhere"), ("training", hostname())):
        ended = RunState(state=state, reason="x", pid=1, pid_started="y", step=3, total_steps=9, host=host)
        ended.write(run.state_path)
        launcher.continue_run(run)
        command.assert_called_with(run, resume=True)
        queued = there(RunState.read(run.state_path))
        told = (queued.state, queued.step, queued.total_steps, queued.pid, queued.host)
        assert told == ("queued", 3, 9, None, hostname())


def test_what_cannot_be_continued_is_refused_and_left_alone(run: Run) -> None:
    for state, message in (("finished", "finished"), ("stopped", "no complete checkpoint")):
        RunState(state=state, host=hostname()).write(run.state_path)
        (run.checkpoints_path / "step-00000001").mkdir(parents=True, exist_ok=True)
        before = run.state_path.read_bytes()
        with pytest.raises(UserError, match=message):
            launcher.continue_run(run)
        assert run.state_path.read_bytes() == before
        assert not (paths.home() / "starts").exists()


def test_a_run_on_another_machine_is_not_continued(run: Run) -> None:
    RunState(state="training", pid=5, pid_started="x", host="elsewhere", updated=time.time()).write(run.state_path)
    add_checkpoint(run)
    with pytest.raises(UserError, match="training on elsewhere"):
        launcher.continue_run(run)
    with pytest.raises(UserError, match="runs on elsewhere"):
        launcher.terminate(run)


def test_checkpoints_count_only_with_their_manifest_and_by_number(run: Run) -> None:
    for step in (90, 100, 20):
        add_checkpoint(run, step)
    for name in ("step-00000110", "step-x"):
        (run.checkpoints_path / name).mkdir()
    assert [path.name for path in complete_checkpoints(run)] == ["step-00000020", "step-00000090", "step-00000100"]


def test_a_signal_never_reaches_a_process_that_only_has_the_same_pid(run: Run) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            state = RunState(state="training", pid=bystander.pid, pid_started="another boot/1", host=hostname())
            state.write(run.state_path)
            assert not launcher.terminate(run)
            assert not launcher.terminate(run, force=True)
            assert bystander.poll() is None
            replace(state, pid_started=start_identity(bystander.pid)).write(run.state_path)
            assert launcher.terminate(run)
            assert bystander.wait(60) == -signal.SIGTERM
            assert not launcher.terminate(run)
        finally:
            bystander.kill()


def test_a_deaf_worker_is_killed_by_force(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "deaf")
    run = launcher.start_run(config_for(home), "My tickets!")
    assert run.id.endswith("-my-tickets")
    assert launcher.wait_until(run, is_training, 30).step == 3
    assert launcher.terminate(run)
    assert run.state().state == "training"
    assert launcher.terminate(run, force=True)
    wait_for(lambda: run.state().state == "lost")
    assert not is_locked(run), "the lock goes with the worker"
    with pytest.raises(UserError, match="lost"):
        launcher.wait_until(run, is_training, 1)


def test_a_process_that_cannot_be_started_is_a_failed_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "worker_command", lambda *_, **__: ["/no/such/python"])
    with pytest.raises(UserError, match="could not be started"):
        launcher.launch(run)
    assert run.state().state == "failed"
    assert not is_locked(run)


def test_the_log_of_an_earlier_worker_is_not_the_reason(run: Run) -> None:
    run.log_path.write_text(
        "== worker started once\nold trouble\n== worker started again\n\nnew\x07 line\r 10%\r 20%\n"
    )
    assert launcher.log_tail(run) == [" 20%"]
    run.log_path.write_bytes(b"\xff\xfe\n" * 3)
    assert len(launcher.log_tail(run, 2)) == 2
    run.log_path.unlink()
    assert launcher.log_tail(run) == []
    assert "log is empty" in launcher.failure_reason(create_run(config_for(run.path), "other"))


def test_a_worker_finds_core_from_anywhere(tmp_path: Path) -> None:
    foreign = tmp_path / "core"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise SystemExit('the wrong core')")
    program, environment = "import core.runs.record.store, core; print(core.__file__)", launcher.worker_environment()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=os.sep, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert Path(done.stdout.strip()) == FAKE.parents[3] / "core" / "__init__.py"


def _trackers_left() -> list[subprocess.Popen[bytes]]:
    launcher.reap()
    return launcher._trackers


def test_trackers_never_disturb_the_worker(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A library that hangs as soon as it is imported, another that is broken.
    (tmp_path / "tensorboard.py").write_text("raise RuntimeError('broken')")
    (tmp_path / "wandb.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("WANDB_API_KEY", "secret-2")
    monkeypatch.setenv("FAKE_WORKER", "report")
    tracking = TrackingSection(tools=["wandb", "tensorboard"])
    run = create_run(config_for(home).model_copy(update={"tracking": tracking}), "tracked")
    write_events(run, step_event(1))
    before = len(launcher._trackers)
    launcher.launch(run)
    try:
        launcher.wait_until(run, lambda state: state.state == "finished", 30)
        hanging, broken = TrackerFiles(run, "wandb"), TrackerFiles(run, "tensorboard")
        wait_for(lambda: hanging.position().state == "sending" and broken.position().state == "failed", 30)
        assert hanging.position().is_working
        environment = Path(f"/proc/{hanging.position().pid}/environ").read_bytes()
        assert b"secret-2" not in environment
        assert b"WANDB_MODE=offline" in environment
        # The broken one has ended and is collected, the hanging one goes its own way.
        wait_for(lambda: len(_trackers_left()) == before + 1)
    finally:
        for process in launcher._trackers[before:]:
            process.kill()
            process.wait()
    assert "its process hung or was ended" in hanging.position().reason


def test_a_tracker_that_cannot_start_is_recorded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr(launcher, "start_tracker", no_process)
    monkeypatch.setenv("FAKE_WORKER", "report")
    run = create_run(config_for(home).model_copy(update={"tracking": TrackingSection(tools="trackio")}), "tracked")
    place = TrackerFiles(run, "trackio")
    place.make()
    launcher.launch(run)
    launcher.wait_until(run, lambda state: state.state == "finished", 30)
    assert "too many processes" in place.position().reason


@pytest.fixture
def hung(run: Run) -> Iterator[Run]:
    """A run whose worker does nothing."""
    with subprocess.Popen(["sleep", "600"]) as process:
        live_state(pid=process.pid, pid_started=start_identity(process.pid), step=4, total_steps=9).write(
            run.state_path
        )
        yield run
        process.kill()


def test_a_killed_worker_has_been_stopped(hung: Run) -> None:
    hung.events_path.write_text('{"t": 1, "type": "st')
    assert launcher.kill(hung, 20).state == "stopped"
    end = EventTail(hung.events_path).read_all()[-1]
    assert isinstance(end, StoppedEvent)
    assert (end.step, end.reason, end.hint) == (4, "stopped by SIGKILL after step 4", way_on(hung))


def test_one_that_has_told_its_end_and_hung_after_it_keeps_that_end(hung: Run) -> None:
    end = FinishedEvent(reason="all steps done", step=9, adapter="adapter")
    hung.events_path.write_text(encode_event(end))
    assert launcher.kill(hung, 20).state == "finished"
    assert EventTail(hung.events_path).read_all() == [end]

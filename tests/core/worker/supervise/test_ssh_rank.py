"""Ranks on another machine: all processes are real, and reached by a fake ssh."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core.config.schema import Config
from core.runs.control.devices import occupant, take_beside
from core.runs.record.events import NoticeEvent
from core.runs.record.files import try_lock
from core.runs.record.store import Run, create_run
from core.worker.distributed.rendezvous import Meeting, tcp_meeting
from core.worker.supervise.process import RankProcess
from core.worker.supervise.remote_rank import receive
from core.worker.supervise.starts import spread_starts
from tests.cases import cases
from tests.core.launch.nodes.fake_ssh import FakeSsh
from tests.core.launch.nodes.test_compare import address, free_port
from tests.waiting import wait_for

FAKE = Path(__file__).with_name("fake_remote_rank.py")
ROOT = FAKE.parents[4]


@pytest.fixture
def run(private_home: Path, tmp_path: Path) -> Run:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    values = {
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "hardware": {"device": "cpu"},
        "distributed": {"hosts": ["tower", "attic"], "address": address(), "port": free_port(), "processes": 2},
    }
    made = create_run(Config.model_validate(values), "tickets")
    checkpoint = made.checkpoints_path / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.bin").write_bytes(os.urandom(200_000))
    (checkpoint / "manifest.json").write_text("{}")
    return made


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory with the pids of the ranks that were started."""
    ssh = FakeSsh(tmp_path / "fake-ssh", monkeypatch)
    ssh.machine("tower", f"export LOCALTUNE_HOME={tmp_path}/there; set -- exec {sys.executable} {FAKE}")
    found = tmp_path / "pids"
    found.mkdir()
    monkeypatch.setenv("FAKE_PIDS", str(found))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    yield found
    for file in found.iterdir():
        if psutil.pid_exists(int(file.read_text())):
            os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.fixture
def begin(run: Run) -> Iterator[Callable[..., RankProcess]]:
    """Starts the first rank on tower, as the supervisor does."""
    begun: list[RankProcess] = []
    lock = try_lock(run)
    assert lock is not None

    def started(*options: str) -> RankProcess:
        starts = spread_starts(run, run.config(), [None, None], os.environ, os.environ)(options, run.path)
        begun.append(RankProcess(next(start for start in starts if "tower" in start.label), lock))
        return begun[-1]

    yield started
    for process in begun:
        process.end(0)
        process.close()
    os.close(lock)


def pid_in(pids: Path) -> int:
    (path,) = wait_for(lambda: list(pids.glob("[0-9]*")), 30, "the rank")
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def ended(process: RankProcess) -> bool:
    process.listen()
    return process.sign().status is not None


def test_the_ranks_of_three_machines_are_numbered_by_machine(run: Run) -> None:
    made = spread_starts(run, run.config(), [None, None], {"A": "1"}, {"A": "1", "SSH_AUTH_SOCK": "x"})([], run.path)
    places = [(start.environment["RANK"], start.environment["LOCAL_RANK"], start.label) for start in made]
    assert places == [
        ("0", "0", "Process 0"),
        ("1", "1", "Process 1"),
        ("2", "0", "Process 2 on tower"),
        ("3", "1", "Process 3 on tower"),
        ("4", "0", "Process 4 on attic"),
        ("5", "1", "Process 5 on attic"),
    ]
    assert {start.environment["WORLD_SIZE"] for start in made} == {"6"}
    assert [("SSH_AUTH_SOCK" in start.environment) for start in made] == [False, False, True, True, True, True]


def test_a_rank_says_who_is_on_its_device_there_and_is_said_to_be_there(
    run: Run, pids: Path, begin: Callable[..., RankProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_RANK", "train")
    with monkeypatch.context() as there:
        there.setenv("LOCALTUNE_HOME", str(tmp_path / "there"))
        beside = take_beside(["cpu"], "theirs")
    process = begin()

    def notices() -> list[NoticeEvent]:
        process.listen()
        return process.take_notices()

    (notice,) = wait_for(notices, 30, "its warning")
    assert (notice.level, notice.code) == ("warning", "shared_device")
    assert notice.message == (
        "Process 2 on tower: Run theirs is on the same device: both get slower, and their memory adds up."
    )
    with monkeypatch.context() as there:
        there.setenv("LOCALTUNE_HOME", str(tmp_path / "there"))
        assert occupant(["cpu"], "theirs") == run.id
    beside.release()


def test_a_rank_runs_there_with_its_checkpoint_and_ends_with_its_process_here(
    run: Run, pids: Path, begin: Callable[..., RankProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_RANK", "train")
    process = begin("--resume")
    pid = pid_in(pids)

    def reported() -> str:
        process.listen()
        return process.sign().host

    wait_for(reported, 30, "its report")
    assert (process.sign().host, process.sign().pid, process.sign().device) == ("tower", pid, "cpu")
    log = run.path / "worker-rank2.log"
    lines = wait_for(lambda: len(found := log.read_text().splitlines()) == 2 and found, 30, "its output")
    assert lines
    place = json.loads(lines[0])
    assert (place["RANK"], place["WORLD_SIZE"], place["LOCAL_RANK"], place["SSH_AUTH_SOCK"]) == ("2", "6", "0", None)
    assert place["GLOO_SOCKET_IFNAME"]
    assert place["NCCL_SOCKET_IFNAME"] == f"={place['GLOO_SOCKET_IFNAME']}"
    assert place["LOCALTUNE_MEETING"] == f"tcp://{run.config().distributed.address}:{run.config().distributed.port}"
    assert "checkpoints/step-00000004/weights.bin" in lines[1]
    assert "['--resume']" in lines[1]
    assert process.end(0)
    wait_for(lambda: is_gone(pid), 30, "the end of the rank")

    def is_removed() -> bool:
        # Unlike rglob it does not mind what goes meanwhile.
        return all("run.toml" not in files for _, _, files in os.walk(tmp_path / "there" / "ranks"))

    wait_for(is_removed, 30, "its directory to be removed")


def test_a_rank_that_fails_has_its_status_and_last_words(
    pids: Path, begin: Callable[..., RankProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANK", "fail")
    process = begin()
    wait_for(lambda: ended(process), 30, "its end")
    assert process.sign().status == 70
    assert process.last_words() == "RuntimeError: the card fell off the bus"


def test_a_rank_that_is_killed_there_is_killed_here(
    pids: Path, begin: Callable[..., RankProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANK", "train")
    process = begin()
    os.kill(pid_in(pids), signal.SIGKILL)
    wait_for(lambda: ended(process), 30, "its end")
    assert process.sign().status == -signal.SIGKILL


@pytest.mark.long
def test_a_machine_that_is_lost_takes_its_rank_along_and_is_named(
    pids: Path, begin: Callable[..., RankProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANK", "train")
    process = begin()
    pid = pid_in(pids)
    psutil.Process(pid).parent().kill()  # type: ignore[union-attr]
    wait_for(lambda: is_gone(pid), 30, "the rank to lose its lifeline")
    wait_for(lambda: ended(process), 30, "its end")
    assert process.sign().status not in (0, 3, 4, 5, None)
    assert process.last_words().startswith("tower did not answer")


@pytest.mark.parametrize(
    ("lines", "status", "words"),
    [
        ('echo \'{"error": "/rows.jsonl is gone.", "hint": "Copy it."}\'; exit 1', 4, "tower: /rows.jsonl is gone."),
        ("echo 'No route to host' >&2; exit 255", 255, "tower cannot be reached over ssh: No route to host."),
    ],
)
def test_a_machine_that_refuses_or_is_away(
    run: Run,
    begin: Callable[..., RankProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    status: int,
    words: str,
) -> None:
    FakeSsh(tmp_path / "other-ssh", monkeypatch).machine("tower", lines)
    process = begin()
    wait_for(lambda: ended(process), 30, "its end")
    assert process.sign().status == status
    assert process.last_words() == words


def test_a_rank_ends_when_the_supervisor_is_killed(run: Run, pids: Path) -> None:
    program = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from core.runs.record.store import Run
        from core.runs.record.files import try_lock
        from core.worker.supervise.process import RankProcess
        from core.worker.supervise.starts import spread_starts
        run = Run(Path(sys.argv[1]))
        starts = spread_starts(run, run.config(), [None, None], os.environ, os.environ)([], run.path)
        RankProcess(starts[2], try_lock(run))
        time.sleep(60)
        """
    )
    environment = {**os.environ, "FAKE_RANK": "train"}
    supervisor = subprocess.Popen([sys.executable, "-c", program, str(run.path)], env=environment)
    try:
        pid = pid_in(pids)
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_for(lambda: is_gone(pid), 30, "the end of the rank")


@cases("name", ["../x", "/x", "a/../../x"])
def test_files_stay_in_their_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out of the directory"):
        receive(io.BytesIO(b"abc"), [[name, 3]], tmp_path / "in")
    assert not (tmp_path / "x").exists()


def test_addresses_of_either_kind_are_places_to_meet() -> None:
    for found, port in (("10.0.0.7", 29_500), ("fd00::7", 29_501)):
        assert Meeting(0, 2, 0, tcp_meeting(found, port)).address == (found, port)

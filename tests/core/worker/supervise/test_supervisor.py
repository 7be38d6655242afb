"""A supervisor with scripted processes instead of training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from core.config.schema import Config
from core.helper import finding_core
from core.runs.record.events import FailedEvent, NoticeEvent, StoppedEvent
from core.runs.record.state import EventTail, RunState, is_same_process, own_identity, start_identity
from core.runs.record.store import create_run, try_lock
from core.worker.process.reports import REPORTS, SUPERVISOR, AwakeClock, report_to_supervisor
from core.worker.supervise.process import RankProcess, Start
from core.worker.supervise.supervisor import Supervisor
from tests.cases import cases
from tests.waiting import wait_for

#: A process of a run: notes that it was started and by which options, then does what its file of acts says for this
#: start; the first act is that of the first start, and the last one holds for all that follow.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from core.worker.process.reports import report_to_supervisor
directory, rank = Path(sys.argv[1]), sys.argv[2]
starts = directory / f"starts-{rank}"
with starts.open("a") as file:
    file.write(json.dumps([os.getpid(), *sys.argv[3:]]) + "\\n")
acts = json.loads((directory / f"acts-{rank}").read_text())
act = acts[min(len(starts.read_text().splitlines()), len(acts)) - 1]
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
reports = report_to_supervisor()
print("rank", rank, "says", act, flush=True)
if "write" in act:
    (directory / "state.json.new").write_text(json.dumps(act["write"]))
    (directory / "state.json.new").replace(act["to"])
if "say" in act:
    reports.tell(**act["say"])
if act.get("kill"):
    os.kill(os.getpid(), signal.SIGKILL)
if act.get("stop"):
    os.kill(os.getpid(), signal.SIGSTOP)
while "after" in act and not (directory / act["after"]).exists():
    time.sleep(0.01)
while "exit" not in act and not heard:
    time.sleep(0.01)
sys.exit(act.get("exit", act.get("then", 3)))
"""
WAITS: dict[str, object] = {}


class Scene:
    """A run whose two processes follow a script.

    Args:
        directory: Where all is.
        first: Act of rank 0 in each of its starts.
        second: Act of rank 1.
        distributed: Options of the run.
    """

    def __init__(self, directory: Path, first: list[object], second: list[object], **distributed: float) -> None:
        values = {"data": {"train": str(directory / "rows.jsonl")}, "distributed": {"timeout": 30.0, **distributed}}
        self.config = Config.model_validate(values)
        self.run = create_run(self.config, "scene")
        self.directory = directory
        self.act(first, second)
        pid, identity = own_identity()
        RunState(state="training", pid=pid, pid_started=identity, step=7).write(self.run.state_path)

    def act(self, first: list[object], second: list[object]) -> None:
        """Say what they do."""
        for rank, acts in enumerate((first, second)):
            (self.directory / f"acts-{rank}").write_text(json.dumps(acts))

    def starts(self, options: Sequence[str], meeting: Path) -> list[Start]:
        """How they are started."""
        assert not meeting.exists()
        command = [sys.executable, "-c", PROGRAM, str(self.directory)]
        logs = [self.directory / f"log-{rank}" for rank in range(2)]
        return [
            Start(rank, [*command, str(rank), *options], finding_core(os.environ), log, f"Process {rank}")
            for rank, log in enumerate(logs)
        ]

    def supervise(self, *options: str, prepare: Callable[[Supervisor], object] | None = None) -> int | list[str]:
        """Run to the end; returns the exit code, or the options the run continues with."""
        lock = try_lock(self.run)
        assert lock is not None
        try:
            supervisor = Supervisor(self.run, self.config, lock, self.starts)
            if prepare is not None:
                prepare(supervisor)
            return supervisor.supervise(options)
        finally:
            os.close(lock)

    def started(self, rank: int) -> list[list[object]]:
        """Pid and options of each start of a process."""
        path = self.directory / f"starts-{rank}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def options(self, rank: int) -> list[list[object]]:
        """Options of each start of a process."""
        return [options for _, *options in self.started(rank)]

    def events(self) -> list[object]:
        """Events of the supervisor."""
        return list(EventTail(self.run.events_path).read_all())

    def notices(self) -> list[NoticeEvent]:
        """Notices of the supervisor."""
        return [event for event in self.events() if isinstance(event, NoticeEvent)]


@contextlib.contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread of its own."""
    thread = threading.Thread(target=action)
    thread.start()
    yield
    thread.join()


REFUSED = {"error": "A single row does not fit.", "hint": "Lower train.max_length."}


@cases(
    ("first", "second", "ended", "starts"),
    [
        ([{"exit": 5}], [{"exit": 0}], 5, 1),
        ([{"exit": 0, "say": {"following": ["--parked", "a game"]}}], [{"exit": 0}], ["--parked", "a game"], 1),
        ([WAITS], [{"exit": 4, "say": REFUSED}], 4, 1),
        ([WAITS], [{"kill": True}, {"exit": 4, "say": {**REFUSED, "pid": 7}}], 4, 2),
    ],
    ids=["end of the first", "continued as something else", "refused", "refused after a restart"],
)
def test_an_end_that_new_processes_would_not_change_is_the_end(
    tmp_path: Path, first: list[object], second: list[object], ended: int | list[str], starts: int
) -> None:
    scene = Scene(tmp_path, first, second)
    assert scene.supervise("--resume") == ended
    assert scene.options(0) == [["--resume"], []][:starts]
    failed = [event for event in scene.events() if isinstance(event, FailedEvent)]
    assert [(event.reason, event.hint) for event in failed] == [tuple(REFUSED.values())] * (ended == 4)
    assert len(scene.events()) == len(failed) + starts - 1


def test_a_killed_process_is_named_and_all_start_again_from_the_last_checkpoint(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [WAITS, {"exit": 0}], [{"kill": True}, {"exit": 0}])
    checkpoint = scene.run.checkpoints_path / "step-00000005"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    assert scene.supervise() == 0
    assert scene.options(0) == scene.options(1) == [[], ["--resume"]]
    (notice,) = scene.notices()
    assert (notice.level, notice.code) == ("warning", "rank_lost")
    assert notice.message == (
        "Process 1 was ended by SIGKILL; its last words: rank 1 says {'kill': True}. The run goes on from "
        "step-00000005, by new processes (1 of 3 times)."
    )


def test_a_paused_run_is_paused_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [{"kill": True}, {"exit": 0}], [WAITS, {"exit": 0}])
    recorded = RunState.read(scene.run.state_path)
    assert recorded is not None
    dataclasses.replace(recorded, state="paused").write(scene.run.state_path)
    assert scene.supervise() == 0
    assert scene.options(0) == [[], ["--paused"]]
    assert "The run begins again, by new processes" in scene.notices()[0].message


@pytest.mark.long
def test_a_suspended_process_is_noticed_and_ended(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [WAITS, {"exit": 0}], [{"stop": True, "say": {"device": "cpu"}}, {"exit": 0}], timeout=5.0)
    assert scene.supervise() == 0
    assert "Process 1 gave no sign of life for 5 s" in scene.notices()[0].message
    for pid in (scene.started(0)[0][0], scene.started(1)[0][0]):
        assert start_identity(int(str(pid))) is None


def test_a_run_fails_with_the_last_words_when_its_starts_are_used_up(tmp_path: Path) -> None:
    said = {"error": "RuntimeError: the card has fallen off the bus"}
    scene = Scene(tmp_path, [WAITS], [{"exit": 1, "say": said}], restarts=1)
    assert scene.supervise() == 4
    assert len(scene.started(0)) == 2
    *_, failed = scene.events()
    assert isinstance(failed, FailedEvent)
    assert failed.reason == (
        "Process 1 ended with code 1; its last words: RuntimeError: the card has fallen off the bus, again."
    )
    assert failed.step == 7
    state = scene.run.state()
    assert (state.state, state.reason, state.step) == ("failed", failed.reason, 7)


@cases(
    ("first", "said"),
    [(WAITS, []), ({"then": 1}, ["Process 0 ended with code 1; its last words: rank 0 says {'then': 1}."])],
    ids=["and it stops", "and it is lost"],
)
def test_a_stop_goes_to_the_first_process_alone(tmp_path: Path, first: dict[str, object], said: list[str]) -> None:
    scene = Scene(tmp_path, [first], [{"exit": 0}])

    def stop() -> None:
        wait_for(lambda: scene.started(0), 30, "the start")
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(stop):
        assert scene.supervise() == 3
    assert [notice.message for notice in scene.notices()] == said
    assert [type(event) for event in scene.events()] == [NoticeEvent, StoppedEvent][: 2 * len(said)]
    assert len(scene.started(0)) == 1


def test_a_stop_before_the_first_start_is_the_end(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [WAITS], [WAITS])
    assert scene.supervise(prepare=lambda supervisor: supervisor._stops.append(signal.SIGTERM)) == 3
    assert scene.started(0) == []
    assert isinstance(scene.events()[-1], StoppedEvent)


def ends_as(scene: Scene, state: RunState) -> dict[str, object]:
    """Has a process write the end of the run."""
    return {"write": dataclasses.asdict(state), "to": str(scene.run.state_path)}


@pytest.mark.long
@cases(
    ("state", "code", "who"),
    [
        (RunState(state="finished", step=9), 0, 0),
        (RunState(state="finished", step=9, refused="its loss"), 5, 1),
        (RunState(state="failed", step=9), 4, 1),
    ],
)
def test_a_crash_after_the_recorded_end_starts_nothing(tmp_path: Path, state: RunState, code: int, who: int) -> None:
    scene = Scene(tmp_path, [], [])
    ends = ends_as(scene, state) | {"then" if who else "exit": 139}
    scene.act([ends], [{"after": "ended", "exit": 139} if who else WAITS])

    def notes() -> None:
        wait_for(lambda: scene.run.state().state == state.state, 30, "the end")
        (tmp_path / "ended").touch()

    with meanwhile(notes):
        assert scene.supervise() == code
    assert scene.events() == []
    assert len(scene.started(0)) == 1


def test_an_end_recorded_earlier_does_not_count(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [{"exit": 139}, {"exit": 0}], [WAITS, {"exit": 0}])
    RunState(state="stopped", step=7).write(scene.run.state_path)
    assert scene.supervise() == 0
    assert len(scene.started(0)) == 2


NOTICE = ["warning", "memory_cut", "Memory ran out in step 3.", "Nothing is lost."]


def test_last_warnings_of_a_process_come_before_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the one whose end is the verdict: it has said them in its last moment."""
    scene = Scene(tmp_path, [WAITS, {"exit": 0}], [{"say": {"notice": NOTICE}, "kill": True}, {"exit": 0}])
    watch = Supervisor._pass_on
    late: list[bool] = []

    def pass_on(self: Supervisor, processes: Sequence[RankProcess]) -> None:
        late.append(all(process.sign().status is not None for process in processes))
        if late[-1]:
            watch(self, processes)

    monkeypatch.setattr(Supervisor, "_pass_on", pass_on)
    assert scene.supervise() == 0
    told, lost = scene.notices()
    assert (told.level, told.code, told.message) == ("warning", "memory_cut", "Process 1: Memory ran out in step 3.")
    assert lost.code == "rank_lost"


def test_a_warning_after_the_end_is_not_put_into_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, [], [])
    ends = ends_as(scene, RunState(state="finished", step=9))
    scene.act([{**ends, "after": "starts-2", "exit": 0}], [{"exit": 0}])
    told: list[NoticeEvent] = []
    late = [NoticeEvent(level="warning", code="hot", message="It is hot.", hint="")]
    take = RankProcess.take_notices

    def take_notices(process: RankProcess) -> list[NoticeEvent]:
        if scene.run.state().state == "finished" and not told:
            told.extend(late)
            (tmp_path / "starts-2").touch()
            return late
        return take(process)

    monkeypatch.setattr(RankProcess, "take_notices", take_notices)
    assert scene.supervise() == 0
    assert told == late
    assert scene.events() == []


@cases("said", ["text", ["warning"], ["loud", "x", "y", "z"], [[], "x", "y", "z"], 7, {"a": "b"}])
def test_a_report_that_makes_no_sense_is_passed_over(tmp_path: Path, said: object) -> None:
    scene = Scene(tmp_path, [{"exit": 0, "after": "starts-1"}], [{"say": {"notice": said}, "exit": 0}])
    assert scene.supervise() == 0
    assert scene.events() == []


def test_processes_suspended_with_their_supervisor_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a container that is frozen for an hour: nobody could be heard meanwhile."""
    moment = 0.0
    scene = Scene(tmp_path, [{"exit": 0, "after": "go"}], [{"exit": 0, "after": "go"}], timeout=5.0)
    awake = AwakeClock(2.0, lambda: moment)
    listened = threading.Event()

    def wake() -> None:
        nonlocal moment
        wait_for(lambda: scene.started(0) and scene.started(1), 30, "the start")
        assert listened.wait(30)
        moment = 3600.0
        looked = awake.seconds
        wait_for(lambda: awake.seconds > looked, 30, "a look")
        (tmp_path / "go").touch()

    listen = RankProcess.listen

    def listening(process: RankProcess) -> None:
        listen(process)
        if process.has_begun:
            listened.set()

    monkeypatch.setattr(RankProcess, "listen", listening)
    with meanwhile(wake):
        assert scene.supervise(prepare=lambda supervisor: setattr(supervisor, "_awake", awake)) == 0
    assert scene.events() == []


def test_all_processes_end_with_their_supervisor(tmp_path: Path) -> None:
    """Also one that is suspended; and the lock of the run is held until they have."""
    scene = Scene(tmp_path, [WAITS], [{"stop": True}], timeout=86400.0)
    code = (
        "import sys; from pathlib import Path; from core.runs.record.store import Run; "
        "from tests.core.worker.supervise.test_supervisor import Scene; "
        "scene = Scene.__new__(Scene); scene.directory, scene.run = Path(sys.argv[1]), Run(Path(sys.argv[2])); "
        "scene.config = scene.run.config(); scene.supervise()"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(scene.run.path)]
    with subprocess.Popen(command, env=finding_core(os.environ)) as supervisor:
        wait_for(lambda: scene.started(0) and scene.started(1), 30, "both to start")
        pids = [int(str(words[0])) for rank in range(2) for words in scene.started(rank)]
        identities = [(pid, start_identity(pid)) for pid in pids]
        assert try_lock(scene.run) is None
        supervisor.kill()
    wait_for(lambda: not any(is_same_process(*identity) for identity in identities), 30, "the processes to be gone")
    lock = wait_for(lambda: try_lock(scene.run), 10, "the lock to be free")
    assert lock is not None
    os.close(lock)


@cases("name", [REPORTS, SUPERVISOR])
def test_a_process_without_a_supervisor_reports_to_nobody(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    reports = report_to_supervisor()
    reports.tell(error="x")
    assert reports.supervisor is None
    assert name not in os.environ

"""Several processes as one run: the same result, controlled as one, none of them lost, and as a job of Slurm."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from core.config.document import ConfigDocument, dump_config
from core.errors import UserError
from core.launch.slurm import SlurmJob
from core.runs.control.client import ControlClient
from core.runs.control.devices import take_beside
from core.runs.record.events import CheckpointEvent, EvalEvent, NoticeEvent, RanksEvent, StoppedEvent
from core.runs.record.state import read_ranks, start_identity
from core.runs.record.store import Run, complete_checkpoints, list_runs
from tests.core.launch.fake_slurm import FakeSlurm
from tests.faults.injections import RELEASE_VARIABLE
from tests.forking import FAULT_VARIABLE
from tests.waiting import wait_for

from . import workers as e2e
from .workers import Workers

#: Enough that a test gets to act on a run before it is over: a step takes a few hundredths of a second.
STEPS = 60
#: NF4 and LoRA in fp32 arithmetic, so that only the order of sums differs.
EXACT: dict[str, dict[str, Any]] = {
    "method": {"dropout": 0.0},
    "train": {"max_steps": STEPS, "precision": "fp32"},
    "eval": {"every_steps": 30, "exact_match": False, "samples": 0},
    "checkpoint": {"every_steps": 3},
}
#: With dropout, whose draws belong to a process and a step.
DROPPING = EXACT | {"method": {"dropout": 0.1}}
PAIR: dict[str, Any] = {"processes": 2, "timeout": 60.0}
QUESTION = [{"role": "user", "content": "ticket login printer"}]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Any:
    """Workers of all tests here."""
    found = Workers(tmp_path_factory.mktemp("distributed"), tiny_model_dir)
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(team: Workers) -> Run:
    """A run of two processes that nothing disturbed."""
    run = team.start("pair", {FAULT_VARIABLE: "fork_ranks:0"}, distributed=PAIR, **DROPPING)
    pause(run)
    assert_nothing_listens_but_on_loopback(run)
    go_on(run)
    e2e.finish(run)
    return run


def pids_of(run: Run) -> list[int]:
    """The processes of a run, the first one first."""

    def told() -> list[int]:
        pids = [rank.pid for rank in read_ranks(run.path) if rank.pid is not None and start_identity(rank.pid)]
        return pids if len(pids) == 2 else []

    found = wait_for(told, e2e.PATIENCE, "the processes to be told")
    assert found is not None
    return found


def pause(run: Run) -> int:
    """Hold a run that is still on its way to its first steps; the step after which it waits."""

    def asked() -> dict[str, Any] | None:
        try:
            return ControlClient(run).request("pause")
        except UserError:
            return None  # its processes are still starting

    answer = wait_for(asked, e2e.PATIENCE, f"{run.id} to take commands")
    assert answer is not None
    # A pause lands between two steps of both, however far each is.
    assert e2e.wait_until_state(run, "paused").step == answer["step"]
    return int(answer["step"])


def wait_until_done_again(run: Run, step: int) -> None:
    """Wait until a step after the last checkpoint is done by processes that were started anew."""
    wait_for(
        lambda: [done.step for done in e2e.steps(run)].count(step) == 2, e2e.PATIENCE, f"step {step} to be done again"
    )


def go_on(run: Run) -> None:
    """Let a paused run go on."""
    ControlClient(run).request("resume")


def assert_nothing_listens_but_on_loopback(run: Run) -> None:
    """All sockets of a paused run's processes are on loopback or in the file system."""
    inodes = set()
    for pid in [e2e.pid_of(run), *pids_of(run)]:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
            except FileNotFoundError:
                continue  # closed meanwhile
    here, there = set(), set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                here.add(fields[1].partition(":")[0])
                there.add(fields[2].partition(":")[0])
    # 127.0.0.1; a socket listening on 0.0.0.0 would be open to the network.
    assert here == {"0100007F"}, "two processes speak with each other over loopback alone"
    # A listening socket has no peer.
    assert there <= {"0100007F", "00000000"}


def losses(run: Run) -> dict[int, float]:
    """The loss of each step, that of the last time it was done."""
    return {event.step: event.loss for event in e2e.steps(run)}


def set_processes(run: Run, count: int) -> None:
    """Let a run that ended go on with another number of processes."""
    document = ConfigDocument.load(run.config_path)
    document.set("distributed.processes", count)
    run.config_path.write_text(document.dumps())


def test_a_run_of_two_is_recorded_as_one(undisturbed: Run) -> None:
    assert [event.step for event in e2e.steps(undisturbed)] == list(range(1, STEPS + 1))
    assert [event.step for event in e2e.only(EvalEvent, undisturbed)] == [30, STEPS]
    assert [event.step for event in e2e.only(CheckpointEvent, undisturbed)] == [*range(3, STEPS + 1, 3)]
    assert e2e.ending(undisturbed).step == STEPS
    assert e2e.notice_codes(undisturbed).count("rank_lost") == 0
    kept = sorted(path.name for path in undisturbed.path.iterdir() if not path.name.startswith("worker"))
    assert [name for name in kept if "meeting" in name] == []
    assert "Traceback" not in (undisturbed.path / "worker-rank1.log").read_text()


@pytest.mark.long
def test_two_killed_again_and_again_end_bit_equal(team: Workers, undisturbed: Run) -> None:
    run = team.start("killed", {FAULT_VARIABLE: "fork_ranks:0;hold:10,20"}, distributed=PAIR, **DROPPING)
    e2e.wait_until_step(run, 10)
    second = pids_of(run)[1]
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: e2e.notice_codes(run).count("rank_lost") == 1, e2e.PATIENCE, "the loss of the second to be told")
    wait_until_done_again(run, 10)
    assert second not in pids_of(run)
    pause(run)
    go_on(run)
    e2e.wait_until_step(run, 20)
    os.kill(pids_of(run)[0], signal.SIGKILL)
    wait_for(lambda: e2e.notice_codes(run).count("rank_lost") == 2, e2e.PATIENCE, "the loss of the first to be told")
    wait_until_done_again(run, 20)
    pause(run)
    go_on(run)
    e2e.finish(run)
    told = [notice.message for notice in e2e.only(NoticeEvent, run) if notice.code == "rank_lost"]
    assert told[0].startswith("Process 1 was ended by SIGKILL")
    assert told[1].startswith("Process 0 was ended by SIGKILL")
    assert "The run goes on from step-000000" in told[0]
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(undisturbed)
    assert losses(run) == losses(undisturbed)


@pytest.mark.long
def test_a_first_process_that_hangs_is_noticed_by_those_who_wait(team: Workers, undisturbed: Run) -> None:
    fault = team.anew({FAULT_VARIABLE: "hang_between:7"})
    run = team.finished("hung", fault, distributed=PAIR | {"timeout": 5.0}, **DROPPING)
    (told,) = [notice.message for notice in e2e.only(NoticeEvent, run) if notice.code == "rank_lost"]
    assert told.startswith("Process 0 hangs at loop (core.worker.train), where the others have waited for it for 1")
    assert "The run goes on from step-00000006" in told
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(undisturbed)


@pytest.mark.long
def test_what_takes_as_long_as_it_takes_is_no_hang(team: Workers, tmp_path: Path) -> None:
    pulses = tmp_path / "pulses"
    fault = team.anew({FAULT_VARIABLE: "tell_pulse:1", RELEASE_VARIABLE: str(pulses)})
    sections = EXACT | {"train": {"max_steps": 12, "precision": "fp32"}, "eval": {"every_steps": 4, "samples": 1}}
    run = team.start("patient", fault, distributed=PAIR, **sections)
    pause(run)
    list(ControlClient(run, timeout=e2e.PATIENCE).generate({"messages": QUESTION, "max_new_tokens": 2}))
    go_on(run)
    e2e.finish(run)
    found: dict[str, set[str]] = {}
    for line in pulses.read_text().splitlines():
        name, pulse = line.split()
        found.setdefault(name, set()).add(pulse)
    between = found.pop("attend")
    assert len(between - {"None"}) > 5, "between two steps it beats"
    assert found == {name: {"None"} for name in ("_carry_out", "_wait", "_save", "measure")}


@pytest.mark.long
def test_one_goes_on_as_two_which_give_the_device_back_together(team: Workers) -> None:
    run = team.start("parked", e2e.held_at(2), train={"max_steps": 8}, eval={"exact_match": False})
    e2e.stop_at(run, 2)
    set_processes(run, 2)
    team.resume(run)
    pause(run)
    pids = pids_of(run)
    ControlClient(run).request("park")
    e2e.wait_until_parked(run)
    wait_for(lambda: not any(start_identity(pid) for pid in pids), e2e.PATIENCE, "its processes to be gone")
    supervisor = e2e.pid_of(run)
    assert start_identity(supervisor) is not None
    ControlClient(run).request("resume")
    e2e.finish(run)
    assert e2e.pid_of(run) == supervisor
    assert [event.step for event in e2e.steps(run)] == list(range(1, 9))
    assert "rank_lost" not in e2e.notice_codes(run)


@pytest.mark.long
def test_a_setting_reaches_both_and_the_run_answers_and_stops(team: Workers) -> None:
    told: dict[str, Run] = {}
    answers = []
    for name, sections in (("told-alone", {}), ("told", {"distributed": PAIR})):
        run = told[name] = team.start(name, team.held_anew(3, 6, 9), **EXACT, **sections)
        client = ControlClient(run, timeout=e2e.PATIENCE)
        e2e.wait_until_step(run, 3)
        client.request("set", **{"train.learning_rate": 5e-4})
        e2e.wait_until_step(run, 6)
        *_, answer = client.generate({"messages": QUESTION, "max_new_tokens": 8, "temperature": 0.0})
        answers.append((answer["source"], answer["text"]))
        e2e.wait_until_step(run, 9)
        assert client.request("stop")["state"] == "stopping"
        assert e2e.exit_code(run) == 3, e2e.log(run)
        assert run.state().state == "stopped"
        assert e2e.only(CheckpointEvent, run)[-1].step == e2e.ending(run).step
    assert answers[0] == answers[1]
    assert "6" in answers[0][0]
    alone, pair = ({event.step: event for event in e2e.steps(run)} for run in told.values())
    common = sorted(alone.keys() & pair.keys())
    assert len(common) >= 9
    assert [pair[step].lr for step in common] == [alone[step].lr for step in common]
    assert pair[5].lr < pair[3].lr / 2
    # A second process that had not heard of it would make other updates, and the losses would part.
    assert [pair[step].loss for step in common] == pytest.approx([alone[step].loss for step in common], abs=1e-5)


@pytest.mark.long
def test_two_tasks_of_slurm_train_as_one_run(workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        (run,) = wait_for(list_runs, e2e.PATIENCE, "the run to be made")
        wait_for(lambda: run.state().state == "training", e2e.PATIENCE, "the run to train")
        e2e.wait_until_step(run, 3)
        told = [(rank.rank, rank.device, rank.heard) for rank in read_ranks(run.path)]
        assert told == [(0, "cpu", None), (1, "cpu", None)]
        slurm.notice()
        wait_for(lambda: slurm.requeued, e2e.PATIENCE, "the job to be queued again")
        saved = e2e.only(CheckpointEvent, run)[-1].step
        wait_for(lambda: run.state().state == "training", e2e.PATIENCE, "the run to go on")
        e2e.wait_until_step(run, saved + 3)
    finally:
        slurm.end()
        status = handed_in.wait(e2e.PATIENCE)
        beside.release()
    assert status == 3, slurm.log
    assert slurm.requeued == ["4711"]
    first, last = e2e.only(StoppedEvent, run)
    assert first.reason == f"stopped by SIGUSR1 after step {saved}"
    state = run.state()
    # Slurm signals the tasks, and the shell signals srun, in any order.
    assert state.state == "stopped"
    assert state.reason in [f"stopped by {name} after step {state.step}" for name in ("SIGTERM", "SIGUSR1")]
    assert last.step == state.step
    assert [path.name for path in complete_checkpoints(run)][-1] == f"step-{state.step:08d}"
    assert [step.step for step in e2e.steps(run)] == list(range(1, state.step + 1))
    assert len(list_runs()) == 1
    warned = [notice.message for notice in e2e.only(NoticeEvent, run) if notice.code == "shared_device"]
    assert warned == 2 * ["Run another is on the same device: both get slower, and their memory adds up."]
    for ranks in e2e.only(RanksEvent, run):
        assert len({rank["pid"] for rank in ranks.ranks}) == 2

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from core.attribution.job import IndexJob, IndexResult
from core.errors import UserError
from core.jobs.job import Job, JobProgress
from core.launch import launcher
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.models.architecture.architecture import read_architecture
from core.queue import store
from core.queue.entry import QueueEntry
from core.queue.fate import live_run
from core.queue.night import Night
from core.queue.runner import MOST_STARTS, Pace, QueueRunner, judge, lack_of_room, unkept_limit
from core.queue.status import read_status
from core.runs.control.devices import occupant, take_beside
from core.runs.record.events import ControlEvent
from core.runs.record.state import PARKED_BY_HAND, RunState, hostname
from core.runs.record.store import Run, create_run, list_runs
from tests.cases import cases
from tests.core.models.architecture import published
from tests.core.queue.helpers import FakeWorkers, add, config_for, fill, make_runner, states
from tests.core.runs.helpers import add_checkpoint, live_state, there, write_events
from tests.measured_here import bounded_here
from tests.small_disk import small_disk


def run_of(entry_id: int) -> Run:
    entry = store.read_queue().entry(entry_id)
    found = {run.id: run for run in list_runs()}
    assert entry.run is not None
    return found[entry.run]


@contextlib.contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, start: str) -> Iterator[None]:
    """The runner dies at a start of the launcher, and with it the pass in the block."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(launcher, start, die)
        with pytest.raises(KeyboardInterrupt):
            yield


def begin_next(fakes: FakeWorkers) -> None:
    """Passes until the next run is on and written down as such."""
    runner = make_runner()
    for _ in range(10):
        runner.tick()
        active = store.read_queue().active
        if active is not None and active.state == "running":
            return
    pytest.fail("no run came on")


def test_runs_start_in_order_one_at_a_time(fakes: FakeWorkers) -> None:
    add("a", "b", train={"learning_rate": 7e-4})
    begin_next(fakes)
    assert states() == {1: "running", 2: "waiting"}
    assert run_of(1).config() == config_for(train={"learning_rate": 7e-4})
    assert run_of(1).config_path.read_text() == store.config_path(1).read_text()
    assert make_runner().tick() == Pace().follow
    fakes.end(run_of(1))
    begin_next(fakes)
    assert states() == {1: "done", 2: "running"}
    fakes.end(run_of(2))
    runner = make_runner()
    while runner.tick() is not None:
        pass
    assert states() == {1: "done", 2: "done"}
    assert [run.rpartition("-")[2] for run, _ in fakes.launched] == ["a", "b"]


def test_any_end_starts_the_next_run(fakes: FakeWorkers) -> None:
    told: list[QueueEntry] = []
    add(*"abcde")
    full = {"reason": "the disk is full"}
    ends = [("failed", full), ("stopped", full), ("finished", full), ("finished", {"refused": "loss 2 is above 1"})]
    for entry_id, (state, changes) in enumerate(ends, 1):
        begin_next(fakes)
        fakes.end(run_of(entry_id), state, **changes)
    begin_next(fakes)
    fakes.vanish(run_of(5))
    make_runner(ended=told.append).tick()
    assert [(entry.state, entry.outcome, entry.reason) for entry in store.read_queue().entries[:4]] == [
        *(("failed", "failed", "the disk is full"), ("done", "stopped", "the disk is full")),
        *(("done", "finished", "the disk is full"), ("done", "finished", "refused by eval.gate: loss 2 is above 1")),
    ]
    assert len(fakes.launched) == 5
    # A process that was killed reports nothing itself.
    (killed,) = told
    assert (killed.id, killed.state, store.read_queue().entry(5).outcome) == (5, "failed", "lost")
    assert "wrote no end" in killed.reason


def test_a_run_that_a_reboot_has_ended_goes_on_from_its_checkpoint_once(fakes: FakeWorkers) -> None:
    add("a")
    begin_next(fakes)
    run = run_of(1)
    add_checkpoint(run)
    fakes.vanish(run, boot="an-earlier-boot")
    make_runner().tick()
    assert fakes.launched == [(run.id, False), (run.id, True)]
    begin_next(fakes)
    entry = store.read_queue().entry(1)
    store.change(lambda queue: queue.with_entry(replace(entry, continued="the-boot-before")))
    fakes.vanish(run, boot="another-boot")
    make_runner().tick()
    assert store.read_queue().entry(1).state == "failed"
    assert "second time" in store.read_queue().entry(1).reason


def test_a_run_that_a_reboot_has_ended_before_a_checkpoint_starts_anew(fakes: FakeWorkers) -> None:
    add("a")
    begin_next(fakes)
    first = run_of(1)
    fakes.vanish(first, boot="an-earlier-boot")
    begin_next(fakes)
    assert run_of(1).id != first.id
    assert fakes.launched == [(first.id, False), (run_of(1).id, False)]


def test_a_continuation_that_was_cut_short_is_made_up_for(fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner dies between its record and the start; the one after it does not take that for a second reboot."""
    add("a")
    begin_next(fakes)
    run = run_of(1)
    add_checkpoint(run)
    fakes.vanish(run, boot="an-earlier-boot")
    with dying(monkeypatch, "continue_run"):
        make_runner().tick()
    begin_next(fakes)
    assert fakes.launched == [(run.id, False), (run.id, True)]


def test_a_run_of_somebody_else_and_memory_are_waited_for(fakes: FakeWorkers) -> None:
    other = create_run(config_for(), "other")
    state = live_state("paused", updated=0.0)
    state.write(other.state_path)
    said: list[str] = []
    add("a")
    lacking = ["9 GB of GPU memory", None]
    runner = make_runner(told=said.append, pace=Pace(soonest=1, latest=3), room=lambda _: lacking.pop(0))
    assert [runner.tick() for _ in range(4)] == [1, 2, 3, 3]
    replace(state, state="finished").write(other.state_path)
    runner.tick()
    assert said == [f"waits for {other.id}, which is stalled", "waits for 9 GB of GPU memory"]
    runner.tick()
    assert states() == {1: "starting"}


def test_an_entry_whose_configuration_is_gone_is_skipped(fakes: FakeWorkers) -> None:
    add("a", "b")
    store.config_path(1).write_text("[train]\nflight = 1\n")
    begin_next(fakes)
    assert states() == {1: "skipped", 2: "running"}
    assert "flight" in store.read_queue().entry(1).reason


def test_a_run_that_was_deleted_is_not_made_again(fakes: FakeWorkers) -> None:
    add("a")
    begin_next(fakes)
    run = run_of(1)
    fakes.unlock(run)
    shutil.rmtree(run.path)
    make_runner().tick()
    assert states() == {1: "failed"}
    assert store.read_queue().entry(1).reason == "its run was deleted"


def test_failed_starts_are_given_up(fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    add("a")
    starts: list[str] = []
    monkeypatch.setattr(launcher, "launch", lambda run, **_: starts.append(run.id))
    runner = make_runner()
    for _ in range(20):
        runner.tick()
    assert len(starts) == MOST_STARTS
    assert states() == {1: "failed"}


def test_a_run_with_an_old_heartbeat_is_started(fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a power cut between the directory and the process: its heartbeat is old."""
    add("a")
    runner = make_runner()
    runner.tick()
    with dying(monkeypatch, "launch"):
        runner.tick()
    run = run_of(1)
    RunState(state="queued", host=hostname(), updated=1000.0).write(run.state_path)
    assert run.state().state == "lost"
    begin_next(fakes)
    assert fakes.launched == [(run.id, False)]


def test_an_entry_that_is_added_at_the_last_moment_is_not_forgotten(fakes: FakeWorkers) -> None:
    released: list[bool] = []
    runner = make_runner(release=lambda: released.append(True))
    assert runner.tick() is None
    assert released == [True]
    add("a")
    store.change(lambda queue: queue.held(1))
    assert make_runner().tick() is None, "a held entry keeps no runner"


def test_a_queue_that_cannot_be_read_starts_nothing_and_ends_nothing(fakes: FakeWorkers) -> None:
    add("a")
    text = store.queue_path().read_text()
    store.queue_path().write_text(text[:40])
    said: list[str] = []
    runner = make_runner(told=said.append)
    assert runner.tick() == Pace().soonest
    assert "cannot be read" in said[0]
    store.queue_path().write_text(text)
    runner.tick()
    assert states() == {1: "starting"}


def test_a_full_disk_is_waited_for(tmp_path: Path, fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "128k") as disk:
        monkeypatch.setenv("LOCALTUNE_HOME", str(disk / "home"))
        add("a")
        filler = disk / "filler"
        fill(filler)
        runner = make_runner()
        assert runner.tick() == Pace().soonest
        assert states() == {1: "waiting"}
        assert fakes.launched == []
        filler.unlink()
        begin_next(fakes)
        assert len(fakes.launched) == 1
        fakes.unlock(run_of(1))


def test_a_full_disk_of_runs_counts_no_start(home: Path, tmp_path: Path, fakes: FakeWorkers) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        add("a")
        (home / "runs").symlink_to(disk)
        fill(disk / "filler")
        runner = make_runner()
        for _ in range(MOST_STARTS + 3):
            runner.tick()
        assert states() == {1: "starting"}
        (disk / "filler").unlink()
        begin_next(fakes)
        assert len(fakes.launched) == 1
        fakes.unlock(run_of(1))


def test_an_entry_that_is_held_as_it_is_skipped_is_not_told_to_have_ended(home: Path, fakes: FakeWorkers) -> None:
    add("a")
    store.config_path(1).write_text("[train]\nnonsense = 1\n")
    told, ended = list[str](), list[QueueEntry]()
    runner = QueueRunner(told.append, ended.append)
    seen = store.read_queue().entry(1)
    store.change(lambda queue: queue.held(1))
    assert runner._begin(seen) == 0.0
    assert (states(), told, ended) == ({1: "held"}, [], [])
    store.change(lambda queue: queue.released(1))
    runner.tick()
    assert states() == {1: "skipped"}
    assert [entry.id for entry in ended] == [1]


def test_a_worker_that_holds_the_lock_is_adopted(fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    add("a")
    runner = make_runner()
    runner.tick()

    def raced(run: Run, *, resume: bool = False, alone: bool = False) -> None:
        fakes.spawn(run)
        raise UserError(f"Run {run.id} already has a worker.")

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "launch", raced)
        runner.tick()
    assert states() == {1: "starting"}
    runner.tick()
    fakes.begin(run_of(1))
    runner.tick()
    assert states() == {1: "running"}
    assert len(fakes.launched) == 1


def test_a_device_that_a_process_still_holds_is_waited_for(fakes: FakeWorkers) -> None:
    add("a")
    ended = create_run(config_for(), "ended-just-now")
    RunState(state="finished").write(ended.state_path)
    held, told = take_beside(["cpu"], ended.id), list[str]()
    assert QueueRunner(told.append).tick() == Pace().soonest
    assert (states(), told) == ({1: "waiting"}, ["waits for the device, which another run has"])
    held.release()
    begin_next(fakes)
    assert states() == {1: "running"}


def test_a_bug_ends_one_pass(
    fakes: FakeWorkers, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add("a")
    said: list[str] = []
    runner = QueueRunner(said.append, room=lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(store, "read_queue", lambda: 1 // 0)
        waits = [runner.tick(), runner.tick(), runner.tick()]
    assert waits == [2.0, 4.0, 8.0]
    assert said == ["waits: an internal error: ZeroDivisionError: integer division or modulo by zero"]
    assert capfd.readouterr().err.count("Traceback") == 1
    for _ in range(3):
        runner.tick()
    assert states() == {1: "running"}


__all__ = ["bounded_here"]

GB = 10**9


def planned(needed: int, machine: Machine) -> Plan:
    """The plan of a model on the card, as if it needed so many bytes."""
    architecture = read_architecture(published.SMOLLM2_135M, "m")
    return replace(make_plan(architecture, config_for(), machine), needed_bytes=needed)


@cases(
    ("free", "needed", "waits"),
    [(20 * GB, 9 * GB, False), (8 * GB, 9 * GB, True), (20 * GB, 30 * GB, False), (None, 9 * GB, False)],
    ids=["it fits", "others use the card", "it never fits", "unknown"],
)
def test_a_run_waits_only_for_what_others_may_give_back(free: int | None, needed: int, waits: bool) -> None:
    reason = judge(Machine("cuda", free), 24 * GB, lambda machine: planned(needed, machine))
    assert (reason is not None) is waits
    if waits:
        assert reason == "9.0 GB of GPU memory, of which 8.0 GB are free while other programs use it"


def test_a_run_on_the_cpu_and_one_that_cannot_be_planned_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Machine:
        raise UserError("There is no such card.")

    monkeypatch.setattr("core.runs.outlook.forecast.this_machine", refuse)
    assert lack_of_room(config_for()) is None
    assert lack_of_room(config_for(hardware={"device": "cuda"})) is None


def test_a_run_has_the_device_until_it_is_over_or_was_parked_by_hand(home: Path) -> None:
    run = create_run(config_for(), "other")
    for state, parked in (("training", ""), ("paused", ""), ("paused", "ollama runner is running")):
        live_state(state, parked=parked).write(run.state_path)
        assert live_run() == run
        assert live_run(besides=run.id) is None
    for state, parked in (("paused", PARKED_BY_HAND), ("finished", "")):
        live_state(state, parked=parked).write(run.state_path)
        assert live_run() is None


def index_of(
    run: Run, made: list[str], *, fails: str = "", halfway: Callable[[], object] = lambda: None, note: str = ""
) -> IndexJob:
    """A job that makes an index of eight rows, or fails halfway."""

    def work(job: IndexJob) -> IndexResult:
        job.report(JobProgress("gradients of the rows", 4, 8))
        made.append(f"{run.id}: {there(read_status()).doing}")
        halfway()
        job.report(JobProgress("gradients of the rows", 5, 8))
        if fails:
            raise UserError(fails)
        made.append(run.id)
        return IndexResult((10, 20), 8, 131_072, 1.0, 8, note)

    return Job("the index", work)


def test_the_index_of_a_finished_run_is_made_before_the_next_run(fakes: FakeWorkers) -> None:
    made: list[str] = []
    add("a", "b", checkpoint={"index": True})
    begin_next(fakes)
    run = run_of(1)
    fakes.end(run)
    stopped: QueueRunner = make_runner(index=lambda run: index_of(run, made, halfway=stopped.stop))
    assert stopped.run() is False
    doing = f"{run.id}: makes the index of {run.id}: gradients of the rows, 4 of 8"
    assert (made, states()) == ([doing], {1: "running", 2: "waiting"}), "the next runner goes on with it"
    assert store.read_queue().entry(1).is_indexing
    held: list[str | None] = []
    runner = make_runner(index=lambda run: index_of(run, made, halfway=lambda: held.append(occupant(["cpu"]))))
    runner.tick()
    assert made == [doing, doing, run.id]
    assert (held, occupant(["cpu"])) == ([f"the index of {run.id}"], None)
    entry = store.read_queue().entry(1)
    assert (entry.state, entry.outcome, entry.reason, entry.is_indexing) == ("done", "finished", "", False)
    begin_next(fakes)
    assert states() == {1: "done", 2: "running"}
    fakes.end(run_of(2))
    make_runner(index=lambda run: index_of(run, made, note="No middle.")).tick()
    assert store.read_queue().entry(2).reason == "No middle."


@cases(
    ("hardware", "changes", "fails", "reason"),
    [
        ({}, {}, "The rows have changed.", "its index could not be made: The rows have changed."),
        ({"power_limit_w": 250}, {}, "", "its index would not keep hardware.power_limit_w; localtune-tui why"),
        ({}, {"refused": "loss 2 is above 1"}, "", "refused by eval.gate: loss 2 is above 1"),
    ],
)
def test_an_index_that_cannot_be_made_leaves_its_entry_done(
    fakes: FakeWorkers, hardware: dict[str, object], changes: dict[str, str], fails: str, reason: str
) -> None:
    made: list[str] = []
    (entry,) = add("a", checkpoint={"index": True}, hardware={"device": "cpu", **hardware})
    begin_next(fakes)
    run = run_of(entry.id)
    fakes.end(run, **changes)
    make_runner(index=lambda run: index_of(run, made, fails=fails)).tick()
    entry = store.read_queue().entry(entry.id)
    assert (entry.state, run.id in made) == ("done", False)
    assert entry.reason.startswith(reason)


def test_an_index_is_broken_off_when_it_is_given_up_or_by_a_new_limit(fakes: FakeWorkers) -> None:
    made: list[str] = []

    def give_up() -> None:
        store.change(lambda queue: queue.removed(1))

    def limit() -> None:
        store.change(lambda queue: replace(queue, night=Night.read({"temperature_limit_c": "75"}, 0.0)))

    add("a", "b", checkpoint={"index": True})
    broken = {1: (give_up, "was given up"), 2: (limit, "would not keep hardware.temperature_limit_c")}
    for number, (halfway, reason) in broken.items():
        begin_next(fakes)
        run = run_of(number)
        fakes.end(run)
        make_runner(index=lambda run, do=halfway: index_of(run, made, halfway=do), pace=Pace(follow=0.0)).tick()
        assert run.id not in made
        entry = store.read_queue().entry(number)
        assert (entry.state, entry.outcome) == ("done", "finished")
        assert entry.reason == f"its index {reason}; localtune-tui why {run.id} --index makes it"


def test_a_limit_that_was_set_during_the_run_holds_for_its_index_too(fakes: FakeWorkers) -> None:
    add("a", checkpoint={"index": True})
    begin_next(fakes)
    run = run_of(1)
    write_events(run, ControlEvent(command="set", sender="cli", result="hardware.power_limit_w = 200"))
    fakes.end(run)
    make_runner(index=lambda run: index_of(run, [])).tick()
    assert store.read_queue().entry(1).reason.startswith("its index would not keep hardware.power_limit_w; ")


def test_limits_hold_while_they_are_in_force() -> None:
    quiet = config_for(night={"quiet_hours": "22:00-07:00"})
    midnight, noon = (datetime(2026, 5, 4, hour).timestamp() for hour in (0, 12))
    assert [unkept_limit(quiet, moment) for moment in (midnight, noon)] == ["night.quiet_hours", ""]
    assert unkept_limit(config_for(hardware={"temperature_limit_c": 75}), noon) == "hardware.temperature_limit_c"


def test_an_index_waits_for_the_device_and_is_given_up_after_some_starts(fakes: FakeWorkers) -> None:
    made: list[str] = []
    add("a", checkpoint={"index": True})
    begin_next(fakes)
    run = run_of(1)
    fakes.end(run)
    other = create_run(config_for(), "other")
    fakes.launch(other)
    said: list[str] = []
    runner = make_runner(index=lambda run: index_of(run, made), told=said.append)
    assert runner.tick()
    fakes.end(other)
    held = take_beside(["cpu"], other.id)
    assert runner.tick()
    held.release()
    assert said == [
        f"waits for {other.id}, then makes the index of {run.id}",
        f"waits for the device, which another run has, then makes the index of {run.id}",
    ]
    assert (made, states()) == ([], {1: "running"})
    store.change(lambda queue: queue.with_entry(replace(queue.entry(1), starts=MOST_STARTS)))
    runner.tick()
    assert store.read_queue().entry(1).reason == (
        f"its index was begun 5 times and not finished; localtune-tui why {run.id} --index makes it"
    )

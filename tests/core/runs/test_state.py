from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.atomic import write_atomic
from core.runs.record import events
from core.runs.record import state as states
from core.runs.record.events import (
    Event,
    FinishedEvent,
    HardwareEvent,
    NoticeEvent,
    PhaseEvent,
    StepEvent,
    encode_event,
)
from core.runs.record.history import RunHistory
from core.runs.record.state import EventTail, Line, last_events, read_lines
from core.text import one_line
from tests.cases import cases
from tests.core.queue.helpers import fill
from tests.core.runs.event_strategies import EVENTS, JSON
from tests.core.runs.helpers import live_state as live
from tests.core.runs.helpers import there
from tests.small_disk import small_disk
from tests.tui.harness import FORBIDDEN, HOSTILE

GARBAGE = st.sampled_from([b"not json", b'{"t": 1}', b"\xff\xfe", b'{"t": 1, "type": "step"}', b'{"t": 1', b"[]"])
UNKNOWN = b'{"t": 1, "type": "from-the-future"}'


def notice(message: str) -> Event:
    return NoticeEvent(t=1.0, level="info", code="x", message=message)


@given(
    st.lists(EVENTS | GARBAGE | st.sampled_from([UNKNOWN, b"", b"  "]), max_size=8),
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
    st.sampled_from([b"", b'{"t": 1, "type": "no', b"garbage"]),
    st.sampled_from([1, 200, states.CHUNK_BYTES]),
)
def test_any_cuts_read_as_whole(pieces: list[Event | bytes], cuts: list[int], unfinished: bytes, limit: int) -> None:
    whole = b"".join(p + b"\n" if isinstance(p, bytes) else encode_event(p).encode() for p in pieces) + unfinished
    found: list[Event] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "events.jsonl")
        tail = EventTail(path)
        assert tail.poll() == []
        with path.open("wb", buffering=0) as file:
            position = 0
            while position < len(whole):
                length = cuts[position % len(cuts)]
                file.write(whole[position : position + length])
                position += length
                found += tail.poll(limit)
        found += tail.read_all()
    events = [piece for piece in pieces if not isinstance(piece, bytes)]
    assert repr(found) == repr(events)
    assert tail.skipped == sum(isinstance(p, bytes) and bool(p.strip()) and p != UNKNOWN for p in pieces)


def test_a_replaced_and_a_shortened_file_are_read_from_their_start(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    path.write_text(encode_event(notice("one")) + encode_event(notice("two")))
    assert len(tail.read_all()) == 2
    other = tmp_path / "other"
    other.write_text(encode_event(notice("three")) + encode_event(notice("four")) + encode_event(notice("five")))
    other.rename(path)
    assert [event.message for event in tail.read_all() if isinstance(event, NoticeEvent)] == ["three", "four", "five"]
    path.write_text(encode_event(notice("six")))
    assert [event.message for event in tail.read_all() if isinstance(event, NoticeEvent)] == ["six"]


@cases("cut", [1, 37, 10_000])
def test_an_endless_line_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(states, "LINE_LIMIT", 500)
    path = tmp_path / "events.jsonl"
    whole = encode_event(notice("before")).encode() + b"x" * 1203 + b"\n" + encode_event(notice("after")).encode()
    tail, found = EventTail(path), list[Event]()
    with path.open("wb", buffering=0) as file:
        for position in range(0, len(whole), cut):
            file.write(whole[position : position + cut])
            found += tail.poll()
            assert len(tail._rest) <= 500
    assert [event.message for event in found if isinstance(event, NoticeEvent)] == ["before", "after"]
    assert tail.skipped == 1


def test_a_reader_begins_again_where_another_stopped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventTail(path)
    second = encode_event(notice("two"))
    path.write_text(encode_event(notice("one")) + second[:10])
    assert first.poll() == [notice("one")]
    with path.open("a") as file:
        file.write(second[10:])
    # Half of a line has been read, and does not count.
    assert EventTail(path, first.offset).read_all() == [notice("two")]
    assert EventTail(path, path.stat().st_size).read_all() == []
    path.write_text(encode_event(notice("new")))
    assert EventTail(path, 10_000).read_all() == [notice("new")]


@given(st.lists(EVENTS | GARBAGE, max_size=8), st.integers(1, 400), st.integers(1, 3000), st.booleans())
def test_a_file_reads_backwards_alike(pieces: list[Event | bytes], chunk: int, limit: int, unfinished: bool) -> None:
    lines = [p + b"\n" if isinstance(p, bytes) else encode_event(p).encode() for p in pieces]
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "_END_BYTES", chunk)
        path = Path(directory, "events.jsonl")
        path.write_bytes(b"".join(lines) + (b'{"t": 1, "type": "no' if unfinished else b""))
        whole = list(reversed(EventTail(path).read_all()))
        assert repr(list(last_events(path, Event, 1 << 20))) == repr(whole)
        searched = list(last_events(path, Event, limit))
        assert repr(searched) == repr(whole[: len(searched)])
        for kind in (StepEvent, NoticeEvent, FinishedEvent):
            found = list(last_events(path, kind, 1 << 20))
            assert repr(found) == repr([event for event in whole if type(event) is kind])


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The test may take some megabytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("little_memory")
def test_a_hole_of_a_terabyte_is_passed_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(encode_event(notice("before")).encode())
    os.truncate(path, 1 << 40)
    tail = EventTail(path)
    assert not tail.is_behind
    polls = 0
    while tail.is_behind or not polls:
        tail.poll()
        polls += 1
        assert polls < 20
    assert list(last_events(path, Event, 16 << 20)) == []
    with path.open("ab") as file:
        file.write(b"its end\n" + encode_event(notice("after")).encode())
    assert tail.read_all() == [notice("after")]
    assert tail.skipped == 1
    assert EventTail(path).read_all() == [notice("before"), notice("after")]


def lines_of(path: Path, limit: int, begin: int = 0) -> list[Line]:
    with io.FileIO(path) as file:
        return list(read_lines(file, limit, begin))


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")), max_size=8), st.integers(1, 20),
       st.integers(1, 40), st.booleans())  # fmt: skip
def test_any_lines_in_any_blocks(pieces: list[bytes], limit: int, block: int, is_ended: bool) -> None:
    whole = b"\n".join(pieces) + (b"\n" if pieces and is_ended else b"")
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "_BLOCK", block)
        path = Path(directory, "a")
        path.write_bytes(whole)
        found = lines_of(path, limit)
        expected = io.BytesIO(whole).readlines()
        assert [line.data for line in found] == [line.removesuffix(b"\n")[:limit] for line in expected]
        assert [line.is_ended for line in found] == [line.endswith(b"\n") for line in expected]
        assert [line.is_cut for line in found] == [len(line.removesuffix(b"\n")) > limit for line in expected]
        ends = [sum(map(len, expected[: number + 1])) for number in range(len(expected))]
        assert [line.end for line in found] == ends
        if len(found) > 1:
            assert lines_of(path, limit, found[0].end) == found[1:]


@pytest.mark.usefixtures("little_memory")
def test_a_hole_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before, after = b"first\n", b"end of the hole\nlast\n"
    with path.open("wb") as file:
        file.write(before)
        file.seek(1 << 40)
        file.write(after)
    found = lines_of(path, 1000)
    assert [line.data for line in found] == [b"first", bytes(1000), b"last"]
    assert [line.is_cut for line in found] == [False, True, False]
    assert [line.end for line in found] == [6, (1 << 40) + 16, (1 << 40) + len(after)]


def test_a_state_comes_back_as_written(tmp_path: Path) -> None:
    state = live(step=3, total_steps=9, reason="ä", socket="/run/x.sock")
    state.write(tmp_path / "state.json")
    assert states.RunState.read(tmp_path / "state.json") == state
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state.json"]


def read(path: Path) -> states.RunState:
    return there(states.RunState.read(path))


@given(
    st.dictionaries(st.sampled_from([item.name for item in dataclasses.fields(states.RunState)]), JSON, min_size=1)
    | JSON.filter(lambda value: not isinstance(value, dict))
)
@example({"state": "failed", "reason": HOSTILE, "host": HOSTILE})
def test_a_damaged_state_is_unreadable_or_sound(value: object) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "state.json")
        path.write_text(json.dumps(value))
        state = states.RunState.read(path)
    if state is not None:
        inferred = states.infer_state(state)
        assert isinstance(inferred.state, str)
        assert isinstance(inferred.is_over, bool)
        assert not FORBIDDEN & set(state.reason + state.host)


@cases(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"state": 5}', b"{}", b'{"state": "\\u001b]52;c;eA==\\u0007"}']
)
def test_an_unreadable_state_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert states.RunState.read(tmp_path / "state.json") is None
    assert states.RunState.read(tmp_path / "missing") is None
    (tmp_path / "state.json").write_text('{"state": "training", "from_the_future": 1}')
    assert states.RunState.read(tmp_path / "state.json") == states.RunState(state="training")


@cases("state", sorted(states.ACTIVE_STATES | states.END_STATES))
def test_a_live_process_keeps_its_state_and_an_end_stays_without_a_process(state: str) -> None:
    recorded = live(state=state) if state in states.ACTIVE_STATES else live(state=state, pid=2**22 + 1, updated=0.0)
    assert states.infer_state(recorded) == recorded
    assert recorded.is_over is (state in states.END_STATES)


def test_a_process_that_is_gone_means_lost() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        state = live(pid=child.pid, pid_started=states.start_identity(child.pid))
        assert states.infer_state(state).state == "training"
        child.kill()
        # Not yet waited for: it is a zombie.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert states.infer_state(state).state == "lost"
    inferred = states.infer_state(state)
    assert inferred.state == "lost"
    assert inferred.is_over
    assert str(child.pid) in inferred.reason
    for reused in ("another-boot/123", None):
        assert states.infer_state(live(pid_started=reused)).state == "lost"


def test_a_queued_run_that_nobody_starts_is_lost_after_a_while() -> None:
    queued = states.RunState(state="queued", host=states.hostname(), updated=1000.0)
    assert states.infer_state(queued, now=1001.0).state == "queued"
    assert states.infer_state(queued, now=1000.0 + states.QUEUED_SECONDS).state == "lost"
    assert states.infer_state(dataclasses.replace(queued, state="training"), now=1001.0).state == "lost"


def test_the_identity_of_a_process_distinguishes_it_from_all_others() -> None:
    pid, identity = states.own_identity()
    assert pid == os.getpid()
    assert identity
    assert states.is_same_process(pid, identity)
    assert not states.is_same_process(pid, identity + "1")
    assert not states.is_same_process(None, identity)
    assert states.start_identity(2**22 + 1) is None
    with subprocess.Popen(["sleep", "60"]) as child:
        assert states.start_identity(child.pid) not in (None, identity)
        child.kill()


def test_a_command_name_with_parentheses_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE) as child:
        identity = states.start_identity(child.pid)
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        child.kill()
    assert identity is not None
    assert identity.endswith("/" + stat.rpartition(")")[2].split()[19])


def test_a_heartbeat_in_the_future_means_stalled() -> None:
    assert states.infer_state(live(), now=math.inf).state == "stalled"
    ahead = states.infer_state(live(updated=time.time() + 2 * 86400))
    assert (ahead.state, ahead.is_over) == ("stalled", False)
    assert ahead.reason == "its last sign of life lies 2d 00h in the future, as if the clock had been set back"
    assert states.infer_state(live(updated=time.time() - 3 * 86400 - 60)).reason == "no sign of life for 3d 00h"
    # Clocks of two machines differ a little.
    assert states.infer_state(live(updated=time.time() + 5)).state == "training"
    queued = states.RunState(state="queued", host=states.hostname(), updated=time.time() + 86400)
    assert states.infer_state(queued).state == "lost"


@pytest.mark.parametrize("days", [-2, 1])
def test_a_clock_that_was_set_neither_hides_a_hang_nor_makes_one(days: int) -> None:
    jumped = time.time() + days * 86400
    alive = live(updated=jumped, beat=time.monotonic() - 1, step_started=jumped - 3)
    assert states.infer_state(alive) == alive
    hung = states.infer_state(dataclasses.replace(alive, beat=time.monotonic() - 45))
    assert hung.state == "stalled"
    assert re.fullmatch(r"no sign of life for 4\d s; step 1 has been running for 4\d s", hung.reason)


@cases(
    ("host", "age", "beat", "state"),
    [
        ("", 0, -1000, "training"),
        ("", 60, -1000, "stalled"),
        ("elsewhere", 0, None, "training"),
        ("elsewhere", 1000, None, "stalled"),
        ("elsewhere", 0, 1000, "training"),
    ],
)
def test_when_the_wall_clock_counts_for_a_heartbeat(host: str, age: float, beat: float | None, state: str) -> None:
    recorded = live(updated=time.time() - age, beat=None if beat is None else time.monotonic() - beat)
    elsewhere = dataclasses.replace(recorded, host=host, pid=2**22 + 1)
    assert states.infer_state(elsewhere if host else recorded).state == state


@cases("reason", ["no space", "a long reason " * 100])
def test_an_end_is_written_on_a_full_disk(tmp_path: Path, reason: str) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        path = disk / "state.json"
        live(reason="r" * 700).write(path)
        fill(disk / "ballast")
        with pytest.raises(OSError, match="No space left"):
            write_atomic(disk / "other", b"x" * 5000)
        failed = live(state="failed", reason=reason, step=7)
        failed.write(path)
        assert states.RunState.read(path) == dataclasses.replace(failed, reason=one_line(reason))


def test_what_does_not_fit_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    before = live(step=3)
    before.write(path)
    monkeypatch.setattr(states, "write_atomic", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    live(step=4).write(path)
    assert read(path).step == 4
    kept = read(path)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:50] if b"five" in data else data, at))
    with pytest.raises(OSError, match="No space left"):
        live(step=5, reason="five").write(path)
    assert read(path) == kept
    with pytest.raises(OSError, match="No space left"):
        live().write(tmp_path / "none" / "state.json")
    for kind in (Path.symlink_to, Path.hardlink_to):
        kind(tmp_path / kind.__name__, path)
        with pytest.raises(OSError, match="No space left"):
            live(step=6).write(tmp_path / kind.__name__)
    assert read(path) == kept


@cases(
    ("told", "pending", "progress"),
    [
        ({}, (), None),
        ({"pending": ["stop", "pause", "dance", 3]}, ("pause", "stop"), None),
        ({"pending": "pause", "progress": 3}, (), None),
        ({"progress": {"what": "x\x1b", "done": 1, "total": 8}}, (), states.StepProgress("x�", 1, 8)),
        ({"progress": {"what": "answers", "done": 9, "total": 8}}, (), None),
        ({"progress": {"what": "answers", "done": 9}}, (), None),
        ({"progress": {"what": "checkpoint", "done": 0, "total": 0}}, (), states.StepProgress("checkpoint")),
    ],
)
def test_what_a_step_is_at_is_read_or_left_out(
    tmp_path: Path, told: dict[str, object], pending: tuple[str, ...], progress: states.StepProgress | None
) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"state": "training", **told}))
    state = read(tmp_path / "state.json")
    assert (state.pending, state.progress) == (pending, progress)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> states.RunState:
    """The state of a worker of this boot that is gone; the kernel has said nothing."""
    monkeypatch.setattr(states, "_KERNEL_MESSAGES", Path("/nowhere"))
    monkeypatch.setattr(states, "_LOGS", ())
    states._memory_death.cache_clear()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    _, identity = states.own_identity()
    return states.RunState(
        state="training", pid=int(gone.stdout), pid_started=identity, host=states.hostname(), updated=1.0
    )


def write_figures(path: Path, used: int | None, kind: str = "cpu", host: int | None = None) -> Path:
    device = {"kind": kind, "memory_used": used, "memory_total": 1000}
    full = {"kind": kind, "memory_used": 1000, "memory_total": 1000}
    newest = HardwareEvent(devices=[device], host_memory_used=host, host_memory_total=1000)
    lines = [HardwareEvent(devices=[full]), newest, PhaseEvent(name="training")]
    path.write_text("".join(map(encode_event, lines)) + '{"type": "hardware", "half')
    return path


@cases(
    ("used", "kind", "host", "told"),
    [(960, "cpu", None, True), (900, "cpu", None, False), (None, "cpu", None, False), (990, "cuda", None, False),
     (1, "cuda", 990, True), (1, "cuda", 500, False)],
)  # fmt: skip
def test_full_memory_shows(
    dead: states.RunState, tmp_path: Path, used: int | None, kind: str, host: int | None, told: bool
) -> None:
    states._memory_death.cache_clear()
    reason = states.memory_death(dead, write_figures(tmp_path / "events.jsonl", used, kind, host))
    assert (reason is not None and reason.startswith("probably killed by the kernel: ")) is told


def test_nothing_is_reported_of_a_worker_that_left_no_witness(dead: states.RunState, tmp_path: Path) -> None:
    assert states.memory_death(dead, tmp_path / "none") is None
    full = write_figures(tmp_path / "events.jsonl", 999)
    earlier = dataclasses.replace(dead, pid_started="another-boot/17")
    assert states.memory_death(earlier, full) is None
    assert states.memory_death(dataclasses.replace(dead, pid=None, pid_started=None), full) is None


@cases(
    ("message", "where"),
    [
        ("Memory cgroup out of memory: Killed process {pid} (python) total-vm:1kB", "its control group"),
        ("Out of memory: Killed process {pid} (python), UID 0, total-vm:1kB", "the machine"),
        ("Out of memory: Killed process {other} (python)", None),
    ],
)
def test_the_kernel_names_whom_it_killed_and_why(
    dead: states.RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, where: str | None
) -> None:
    states._memory_death.cache_clear()
    log = tmp_path / "kern.log"
    assert dead.pid is not None
    log.write_text(f"Nov 24 22:00:00 host kernel: [ 1.0] {message.format(pid=dead.pid, other=dead.pid * 10)}\n")
    monkeypatch.setattr(states, "_LOGS", (tmp_path / "none", log))
    reason = states.memory_death(dead, tmp_path / "none")
    expected = where and f"killed by the kernel, as {where} ran out of memory; {states.MEMORY_ADVICE}"
    assert reason == expected
    # A message before the last heartbeat is about another process with this pid.
    os.utime(log, (0, 0))
    states._memory_death.cache_clear()
    assert states.memory_death(dead, tmp_path / "none") is None


def test_lost_messages_hide_no_others(dead: states.RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = tmp_path / "kmsg"
    messages.touch()
    killed = f"Out of memory: Killed process {dead.pid} (python)\n".encode()
    coming: list[bytes | OSError] = [b"an early one\n", BrokenPipeError(), killed, BlockingIOError()]

    def read(_descriptor: int, _size: int) -> bytes:
        message = coming.pop(0)
        if isinstance(message, OSError):
            raise message
        return message

    monkeypatch.setattr(states, "_KERNEL_MESSAGES", messages)
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        reason = states.memory_death(dead, tmp_path / "none")
    assert reason == f"killed by the kernel, as the machine ran out of memory; {states.MEMORY_ADVICE}"


@cases(
    ("text", "kills"),
    [("low 0\noom 3\noom_kill 2\noom_group_kill 7\n", 2), ("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
     ("oom_kill x\n", None), ("oom_kill " + "9" * 5000 + "\n", None), ("", None)],
)  # fmt: skip
def test_the_counter_of_both_versions_is_read(tmp_path: Path, text: str, kills: int | None) -> None:
    path = tmp_path / "memory.events"
    path.write_text(text)
    assert states.read_kills(path) == kills
    assert states.read_kills(tmp_path / "none") is None
    path.unlink()
    os.mkfifo(path)
    assert states.read_kills(path) is None, "a pipe is not waited for"


def test_a_counter_that_went_up_since_the_start_shows(dead: states.RunState, tmp_path: Path) -> None:
    path = tmp_path / "memory.events"
    path.write_text("oom_kill 4\n")
    started = dataclasses.replace(dead, memory_events=str(path), memory_kills=3)
    reason = there(states.memory_death(started, tmp_path / "none"))
    assert reason.startswith("killed by the kernel, as its control group")
    assert states.memory_death(dataclasses.replace(started, memory_kills=4), tmp_path / "none") is None


RANKS = (
    states.Rank(rank=0, host="head", pid=11, device="cuda:0", heard=100.0),
    states.Rank(rank=1, host="head", pid=12, device="cuda:1", heard=99.0, is_waiting=True),
    states.Rank(rank=2, host="tower", pid=7, device="cuda:0", heard=86.0),
)


def test_words_for_processes_and_their_signs_of_life() -> None:
    assert states.rank_words(RANKS) == "3 processes on 2 machines: head (cuda:0, cuda:1), tower (cuda:0)"
    assert states.rank_words(RANKS[:2]) == "2 processes: head (cuda:0, cuda:1)"
    assert [states.sign_words(rank, 100.4) for rank in RANKS] == ["0s ago", "1s ago", "14s ago"]
    assert states.sign_words(states.Rank(rank=0), 100.0) == "–"
    assert states.silent_words(RANKS, 90.0) == ""
    assert states.silent_words(RANKS, 100.0) == "no sign of life for 14s: 2 on tower"
    assert states.silent_words([states.Rank(rank=0)], 100.0) == ""


@cases(
    "content",
    [b"", b"{", b"[]", b'{"ranks": 1}', b'{"ranks": [1, null, {"rank": -1}, {"rank": true}]}', b"[" * 100_000],
)
def test_only_a_list_of_processes_is_read_as_written(tmp_path: Path, content: bytes) -> None:
    assert states.read_ranks(tmp_path) == ()
    states.write_ranks(tmp_path, RANKS)
    assert states.read_ranks(tmp_path) == RANKS
    states.ranks_path(tmp_path).write_bytes(content)
    assert states.read_ranks(tmp_path) == ()


@given(JSON)
def test_foreign_values_are_left_out(value: object) -> None:
    fields = dict.fromkeys(("host", "pid", "device", "heard", "is_waiting"), value)
    (found,) = states.Rank.all_from([{"rank": 3, **fields}])
    json.dumps(found.to_dict(), allow_nan=False)
    assert states.sign_words(found, 1.0)


def test_the_record_names_the_processes_of_the_newest_start() -> None:
    history = RunHistory()
    history.apply(events.PhaseEvent(t=1.0, name="importing"))
    history.apply(events.RanksEvent(t=2.0, ranks=[rank.to_dict() for rank in RANKS[:2]], strategy="replicate"))
    assert [rank.pid for rank in history.ranks] == [11, 12]
    assert history.log[-1].text == "2 processes: head (cuda:0, cuda:1); replicate"
    history.apply(events.PhaseEvent(t=3.0, name="training"))
    history.apply(events.PhaseEvent(t=4.0, name="importing"))
    assert history.ranks == ()

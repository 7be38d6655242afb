"""OOM kills of a worker, recognized from its record and the kernel's."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.runs.record import state as oom
from core.runs.record.events import HardwareEvent, PhaseEvent, encode_event
from core.runs.record.state import RunState, hostname, own_identity
from tests.cases import cases


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> RunState:
    """The state of a worker of this boot that is gone; the kernel has said nothing."""
    monkeypatch.setattr(oom, "_KERNEL_MESSAGES", Path("/nowhere"))
    monkeypatch.setattr(oom, "_LOGS", ())
    oom._memory_death.cache_clear()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    _, identity = own_identity()
    return RunState(state="training", pid=int(gone.stdout), pid_started=identity, host=hostname(), updated=1.0)


def write_figures(path: Path, used: int | None, kind: str = "cpu") -> Path:
    device = {"kind": kind, "memory_used": used, "memory_total": 1000}
    full = {"kind": kind, "memory_used": 1000, "memory_total": 1000}
    lines = [HardwareEvent(devices=[full]), HardwareEvent(devices=[device]), PhaseEvent(name="training")]
    path.write_text("".join(map(encode_event, lines)) + '{"type": "hardware", "half')
    return path


@cases(("used", "kind", "told"), [(960, "cpu", True), (900, "cpu", False), (None, "cpu", False),
                                                    (990, "cuda", False)])  # fmt: skip
def test_the_last_figures_make_it_probable(
    dead: RunState, tmp_path: Path, used: int | None, kind: str, told: bool
) -> None:
    oom._memory_death.cache_clear()
    reason = oom.memory_death(dead, write_figures(tmp_path / "events.jsonl", used, kind))
    assert (reason is not None and reason.startswith("probably killed by the kernel: ")) is told


def test_the_memory_of_the_machine_counts_beside_a_card(dead: RunState, tmp_path: Path) -> None:
    card = {"kind": "cuda", "memory_used": 1, "memory_total": 1000}
    events = tmp_path / "events.jsonl"
    for used, told in ((990, True), (500, False)):
        event = HardwareEvent(devices=[card], host_memory_used=used, host_memory_total=1000)
        events.write_text(encode_event(event))
        oom._memory_death.cache_clear()
        assert (oom.memory_death(dead, events) is not None) is told


def test_nothing_is_said_of_a_worker_that_left_no_witness(dead: RunState, tmp_path: Path) -> None:
    assert oom.memory_death(dead, tmp_path / "none") is None
    full = write_figures(tmp_path / "events.jsonl", 999)
    earlier = dataclasses.replace(dead, pid_started="another-boot/17")
    assert oom.memory_death(earlier, full) is None
    assert oom.memory_death(dataclasses.replace(dead, pid=None, pid_started=None), full) is None


@cases(
    ("message", "where"),
    [
        ("Memory cgroup out of memory: Killed process {pid} (python) total-vm:1kB", "its control group"),
        ("Out of memory: Killed process {pid} (python), UID 0, total-vm:1kB", "the machine"),
        ("Out of memory: Killed process {other} (python)", None),
    ],
)
def test_the_kernel_names_whom_it_killed_and_why(
    dead: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, where: str | None
) -> None:
    oom._memory_death.cache_clear()
    log = tmp_path / "kern.log"
    assert dead.pid is not None
    log.write_text(f"Nov 24 22:00:00 host kernel: [ 1.0] {message.format(pid=dead.pid, other=dead.pid * 10)}\n")
    monkeypatch.setattr(oom, "_LOGS", (tmp_path / "none", log))
    reason = oom.memory_death(dead, tmp_path / "none")
    expected = where and f"killed by the kernel, as {where} ran out of memory; {oom.MEMORY_ADVICE}"
    assert reason == expected
    # What was written before it was last heard is about another process.
    os.utime(log, (0, 0))
    oom._memory_death.cache_clear()
    assert oom.memory_death(dead, tmp_path / "none") is None


def test_messages_that_were_overwritten_hide_none_of_those_behind_them(
    dead: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = tmp_path / "kmsg"
    messages.touch()
    killed = f"Out of memory: Killed process {dead.pid} (python)\n".encode()
    coming: list[bytes | OSError] = [b"an early one\n", BrokenPipeError(), killed, BlockingIOError()]

    def read(_descriptor: int, _size: int) -> bytes:
        message = coming.pop(0)
        if isinstance(message, OSError):
            raise message
        return message

    monkeypatch.setattr(oom, "_KERNEL_MESSAGES", messages)
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        reason = oom.memory_death(dead, tmp_path / "none")
    assert reason == f"killed by the kernel, as the machine ran out of memory; {oom.MEMORY_ADVICE}"


@cases(
    ("text", "kills"),
    [("low 0\noom 3\noom_kill 2\noom_group_kill 7\n", 2), ("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
     ("oom_kill x\n", None), ("", None)],
)  # fmt: skip
def test_the_counter_of_both_versions_is_read(tmp_path: Path, text: str, kills: int | None) -> None:
    path = tmp_path / "memory.events"
    path.write_text(text)
    assert oom.read_kills(path) == kills
    assert oom.read_kills(tmp_path / "none") is None


def test_a_counter_that_went_up_since_the_start_tells(dead: RunState, tmp_path: Path) -> None:
    path = tmp_path / "memory.events"
    path.write_text("oom_kill 4\n")
    started = dataclasses.replace(dead, memory_events=str(path), memory_kills=3)
    reason = oom.memory_death(started, tmp_path / "none")
    assert reason is not None
    assert reason.startswith("killed by the kernel, as its control group")
    assert oom.memory_death(dataclasses.replace(started, memory_kills=4), tmp_path / "none") is None

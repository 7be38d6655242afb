"""OOM kills: whether a worker that is gone was killed by the kernel because the machine ran out of memory.

A killed process cannot record anything, and its parent may be gone as well. The evidence is, in this order, the
kernel's messages, the counter of the control group, and the last figures of the worker's own record.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from pathlib import Path

from core.runs.events import HardwareEvent
from core.runs.process import boot_id
from core.runs.state import RunState
from core.runs.tail import last_events
from core.small_files import open_regular, read_small
from core.units import format_bytes

#: Hint for the user.
ADVICE = (
    "lower train.micro_batch_size or train.max_length, take fewer rows or a smaller model, close other programs, or "
    "give it more memory"
)
#: Beginning of each message.
SIGN = "killed by the kernel"
#: Share of memory in use from which an OOM kill is assumed without other evidence.
FULL_SHARE = 0.95
_CGROUPS = Path("/sys/fs/cgroup")
_KERNEL_MESSAGES = Path("/dev/kmsg")
_LOGS = tuple(Path("/var/log") / name for name in ("kern.log", "syslog", "messages"))
_TAIL_BYTES = 1 << 20
_COUNTER_BYTES = 1 << 16
_VICTIM = re.compile(rb"(Memory cgroup out of memory|Out of memory)[^\n]*?Killed process (\d{1,10})\b")


def own_counter() -> tuple[str | None, int | None]:
    """File in which this process's control group counts OOM kills, and its present count; None if there is no such
    group.
    """
    for path in _counter_files():
        if (count := read_kills(path)) is not None:
            return str(path), count
    return None, None


def read_kills(path: Path) -> int | None:
    """The ``oom_kill`` count of a ``memory.events`` (version 2) or ``memory.oom_control`` (version 1); None without
    one.
    """
    try:
        lines = read_small(path, _COUNTER_BYTES).decode("ascii", errors="replace").splitlines()
    except (OSError, ValueError):  # the path comes from a state.json, which is untrusted
        return None
    counts = [line.removeprefix("oom_kill ") for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts and re.fullmatch("[0-9]{1,19}", counts[0]) else None


def memory_death(recorded: RunState, events: Path) -> str | None:
    """Reason for the end of a worker if it was an OOM kill, with a hint, in one line.

    Args:
        recorded: Last content of its ``state.json``.
        events: Its ``events.jsonl``.
    """
    try:
        is_of_this_boot = (recorded.pid_started or "").partition("/")[0] == boot_id()
    except OSError:
        return None
    if recorded.pid is None or not is_of_this_boot:
        return None  # another machine, or an earlier boot
    return _memory_death(recorded, events)


@functools.lru_cache(maxsize=256)
def _memory_death(recorded: RunState, events: Path) -> str | None:
    if recorded.pid is not None and (group := _killed_by_message(recorded.pid, recorded.updated)) is not None:
        where = "its control group" if group else "the machine"
        return f"{SIGN}, as {where} ran out of memory; {ADVICE}"
    if recorded.memory_events and recorded.memory_kills is not None:
        count = read_kills(Path(recorded.memory_events))
        if count is not None and count > recorded.memory_kills:
            return f"{SIGN}, as its control group ran out of memory; {ADVICE}"
    if (figures := _last_figures(events)) is not None and figures[0] >= FULL_SHARE * figures[1]:
        used, total = map(format_bytes, figures)
        return f"probably {SIGN}: {used} of {total} memory were in use when it was last heard; {ADVICE}"
    return None


def _counter_files() -> list[Path]:
    """Candidate paths of the counter, best first."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        # In a container the path may be that of the host, and the group the root of the visible hierarchy.
        groups = (group.lstrip("/"), "")
        if "memory" in controllers.split(","):
            found += [_CGROUPS / "memory" / inner / "memory.oom_control" for inner in groups]
        elif group and not controllers:
            found += [base / inner / "memory.events" for base in (_CGROUPS, _CGROUPS / "unified") for inner in groups]
    return found


def _killed_by_message(pid: int, since: float) -> bool | None:
    """Whether the kernel's messages say that it killed a process for its control group (True) or the machine (False);
    None if they say neither.
    """
    texts = [_kernel_messages()]
    for path in _LOGS:
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_mtime >= since:
                    file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
                    texts.append(file.read(_TAIL_BYTES) or b"")
        except OSError:
            continue  # most systems have one of them, readable by some
    for text in texts:
        for group, victim in _VICTIM.findall(text):
            if int(victim) == pid:
                return bool(group.startswith(b"Memory cgroup"))
    return None


def _kernel_messages() -> bytes:
    """The kernel's messages since boot, as far as they are kept and readable."""
    try:
        descriptor = os.open(_KERNEL_MESSAGES, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    pieces: list[bytes] = []
    try:
        # Behind the last message, reading fails; where it fails for another reason, what has been read counts.
        with contextlib.suppress(OSError):
            while True:
                # The next message was overwritten before it was read; behind it is the oldest that is left.
                with contextlib.suppress(BrokenPipeError):
                    if not (piece := os.read(descriptor, 8192)):
                        break
                    pieces.append(piece)
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def _last_figures(events: Path) -> tuple[int, int] | None:
    """Memory of the machine (or of the container) in use and in total at the last report, in bytes."""
    for event in last_events(events, HardwareEvent.type):
        if isinstance(event, HardwareEvent):
            host = (event.host_memory_used, event.host_memory_total)
            # Records of earlier versions tell it of the CPU alone.
            cpus = [device for device in event.devices if device.get("kind") == "cpu"]
            for used, total in (host, *((cpu.get("memory_used"), cpu.get("memory_total")) for cpu in cpus)):
                if type(used) is int and type(total) is int and total > 0:
                    return used, total
        return None
    return None

"""State of a run as its worker reports it: ``events.jsonl``, ``state.json``, and the state that a reader infers.

``events.jsonl`` is read line by line with a bound, followed while it is written, or searched from its end.

A pid is recorded with its start time, since pids are reused. A worker that is gone without an end may have been killed
for lack of memory; the evidence is the kernel's messages, the counter of the control group, or the last figures of the
record. A run of several processes lists them in ``ranks.json``, replaced every few seconds by the supervisor, or by the
first process if another program has started them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from core.atomic import NO_ROOM, overwrite, write_atomic
from core.runs.record.events import LINE_LIMIT, TIME_LIMIT, Event, HardwareEvent, MalformedEventError, decode_event
from core.small_files import open_regular, read_json, read_small
from core.text import one_line
from core.units import counted, format_bytes, format_duration

# Events.

E = TypeVar("E", bound=Event)

_BLOCK = 1 << 18


class Line(NamedTuple):
    """A line of a file."""

    data: bytes
    """Its bytes without the line break, up to the limit."""
    end: int
    """Offset in the file behind it and its line break, in bytes."""
    is_ended: bool
    """True if it has a line break; the last line of a file may have none."""
    is_cut: bool
    """True if it is longer than the limit."""


def read_lines(file: FileIO, limit: int, begin: int = 0) -> Iterator[Line]:
    """The lines of a file from an offset to its present end.

    Args:
        file: The file, at any position.
        limit: Most bytes of a line; the rest of a longer one is skipped, holes in it without being read.
        begin: Offset of the beginning of a line, in bytes.

    Raises:
        OSError: If it cannot be read.
    """
    held, end, is_cut = b"", begin, False
    file.seek(begin)
    while block := file.read(_BLOCK):
        *pieces, rest = block.split(b"\n")
        for piece in pieces:
            data = held + piece
            end += len(piece) + 1
            yield Line(data[:limit], end, True, is_cut or len(data) > limit)
            held, is_cut = b"", False
        end += len(rest)
        if not is_cut:
            held += rest
            is_cut = len(held) > limit
            held = held[:limit]
        if is_cut:
            end = skip_hole(file, end)
    if held or is_cut:
        yield Line(held, end, False, is_cut)


def skip_hole(file: FileIO, place: int) -> int:
    """Go on to the next bytes that are on the disk, or to the end of the file.

    Args:
        file: The file.
        place: Offset in it, in bytes.

    Returns:
        The new offset.

    Raises:
        OSError: If the file cannot be read.
    """
    try:
        return os.lseek(file.fileno(), place, os.SEEK_DATA)
    except OSError as error:
        # No more data, or a file system without holes.
        return os.lseek(file.fileno(), *((0, os.SEEK_END) if error.errno == errno.ENXIO else (place, os.SEEK_SET)))


#: Bytes per read, so that a long history does not block the reader's event loop.
CHUNK_BYTES = 1 << 20
_END_BYTES = 64 << 10


class EventTail:
    """Incremental reader: whole lines only, unknown types ignored, invalid lines counted.

    Args:
        path: The file; it need not exist yet.
        offset: Bytes already read, up to the end of a line.
        decode: Decodes a line, as :func:`core.runs.record.events.decode_event`.
    """

    def __init__(self, path: Path, offset: int = 0, decode: Callable[[bytes], Event | None] = decode_event) -> None:
        self.path = path
        self._decode_line = decode
        self.skipped = 0
        """Lines that could not be read as events."""
        self._offset = offset
        self._inode: int | None = None
        self._rest = b""
        self._overlong = False
        self.is_behind = False
        """True if the last read did not reach the end of the file."""

    def poll(self, limit: int = CHUNK_BYTES) -> list[Event]:
        """Events written since the last call, from at most ``limit`` bytes; empty if there are none.

        A file that has been replaced or has become shorter is read again from its start.
        """
        try:
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                if self._inode is None:
                    self._inode = status.st_ino
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset, self._rest, self._overlong = status.st_ino, 0, b"", False
                if self._overlong:
                    # The rest of a line that is skipped; a hole in it need not be read.
                    self._offset = skip_hole(file, self._offset)
                file.seek(self._offset)
                data = file.read(limit) or b""
        except OSError:
            self.is_behind = False
            return []
        self._offset += len(data)
        self.is_behind = self._offset < status.st_size
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if self._overlong and lines:
            # The rest of a line whose beginning was discarded.
            lines.pop(0)
            self._overlong = False
        if len(self._rest) > LINE_LIMIT or self._overlong:
            self.skipped += not self._overlong
            self._rest, self._overlong = b"", True
        return self._decode(lines)

    @property
    def offset(self) -> int:
        """Bytes read, up to the end of the last whole line; another reader can start there."""
        return self._offset - len(self._rest)

    def read_all(self) -> list[Event]:
        """All events up to the present end of the file."""
        return [event for batch in self.batches() for event in batch]

    def batches(self) -> Iterator[list[Event]]:
        """All events up to the present end of the file, in batches: a long history takes a while to read."""
        while True:
            before = self._offset
            yield self.poll()
            if self._offset == before:
                return

    def _decode(self, lines: list[bytes]) -> list[Event]:
        found: list[Event] = []
        for line in lines:
            if not line.strip():
                continue
            try:
                event = _decode_whole(line, self._decode_line)
            except MalformedEventError:
                self.skipped += 1
            else:
                found += [event] if event is not None else []
        return found


def _decode_whole(line: bytes, decode: Callable[[bytes], Event | None] = decode_event) -> Event | None:
    if len(line) > LINE_LIMIT:
        raise MalformedEventError("too long")
    return decode(line)


def last_events(path: Path, kind: type[E], limit: int = _END_BYTES) -> Iterator[E]:
    """Events at the end of a file, the newest first; none if it cannot be read.

    Args:
        path: The file.
        kind: Only events of this very class, :class:`Event` for all; others are skipped without being parsed.
        limit: Most bytes searched.
    """
    sign = f'"{kind.type}"'.encode() if kind.type else b""
    for line in _last_lines(path, limit, sign):
        if sign not in line:
            continue
        try:
            event = _decode_whole(line)
        except MalformedEventError:
            continue
        if isinstance(event, kind) and (not kind.type or event.type == kind.type):
            yield event


def _last_lines(path: Path, limit: int, sign: bytes) -> Iterator[bytes]:
    """Lines at the end of a file, the last one first; an unterminated line is skipped. Lines of a block without the
    sign come in one piece.
    """
    try:
        with open_regular(path) as file:
            place = file.seek(0, os.SEEK_END)
            stop, rest, is_end = max(place - limit, 0), b"", True
            while place > stop:
                begin = max(place - _END_BYTES, stop)
                file.seek(begin)
                block = (file.read(place - begin) or b"") + rest
                lines = block.split(b"\n", -1 if sign in block else 1)
                place = begin
                # The first piece is the rest of a line that begins earlier, unless the file begins with it. A line that
                # is too long is kept only up to the limit.
                rest = lines.pop(0)[: LINE_LIMIT + 1] if place else b""
                if is_end and lines:
                    lines.pop()
                    is_end = False
                yield from reversed(lines)
    except OSError:
        return


# Processes and their state.


def start_identity(pid: int) -> str | None:
    """Start identity of a process, unique among all processes with its pid; None if there is no process, or a zombie.

    It is the boot id with the process's start in clock ticks since boot (``/proc/PID/stat``, field 22), so changes of
    the wall clock do not matter.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = boot_id()
    except OSError:
        return None
    # The command name, in parentheses, may itself contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    return f"{boot}/{fields[19]}"


def boot_id() -> str:
    """Boot id of the kernel.

    Raises:
        OSError: If it cannot be read.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_same_process(pid: int | None, identity: str | None) -> bool:
    """True if the process that was recorded as ``pid`` with ``identity`` is still alive."""
    return pid is not None and identity is not None and start_identity(pid) == identity


def send_signal(pid: int, identity: str | None, number: signal.Signals) -> bool:
    """Send a signal to the process that was recorded as ``pid`` with ``identity``; False if it is gone.

    Raises:
        OSError: If the process cannot be signaled.
    """
    with contextlib.suppress(ProcessLookupError):
        # A pidfd refers to the same process in the check and in the signal.
        handle = os.pidfd_open(pid)
        try:
            if is_same_process(pid, identity):
                signal.pidfd_send_signal(handle, number)
                return True
        finally:
            os.close(handle)
    return False


def own_identity() -> tuple[int, str | None]:
    """This process's pid and start identity."""
    return os.getpid(), start_identity(os.getpid())


def hostname() -> str:
    """Name of this machine, as recorded in ``state.json``."""
    return socket.gethostname()


def host_folder() -> str:
    """Name of this machine as a folder name, for files that machines with a common home do not share."""
    name = re.sub(r"[^\w.-]", "_", hostname(), flags=re.ASCII)[:100]
    return name if name.strip(".") else f"_{name}"


#: States that a worker writes.
ACTIVE_STATES = frozenset({"queued", "starting", "training", "paused", "stopping"})
END_STATES = frozenset({"finished", "stopped", "failed"})
#: States that only a reader infers.
INFERRED_STATES = frozenset({"lost", "stalled"})

#: Seconds without a heartbeat after which a live worker counts as stalled; it writes one at least every five.
STALE_SECONDS = 30.0
#: Seconds that a queued run may be without a process before it counts as lost.
QUEUED_SECONDS = 60.0
#: Largest state file, in bytes.
FILE_LIMIT = 1 << 20
#: Valid process ids of the kernel, and valid step numbers.
_PIDS, _COUNTS = range(1 << 31), range(1 << 63)

#: Value of ``parked`` for a run that was parked by hand, and is only resumed by hand.
PARKED_BY_HAND = "on request"
#: Commands that wait for the end of a step or of an evaluation's pass, and can be withdrawn until then.
PENDING = ("pause", "checkpoint", "skip_evaluation", "park", "stop")
#: Text fields that are displayed.
_TEXTS = ("reason", "host", "refused", "parked")
#: States as the end of a sentence about a run, if they are not "is" and the state.
_PHRASES = {"failed": "has failed", "stopped": "was stopped"}

EXIT_CODES = {"finished": 0, "stopped": 3, "failed": 4}
#: Exit code of a finished run whose result misses a bar of ``eval.gate``.
EXIT_REFUSED = 5


def in_words(state: str) -> str:
    """A state as the end of a sentence about a run: ``is training``, ``has failed``."""
    return _PHRASES.get(state, f"is {state}")


@dataclass(frozen=True)
class StepProgress:
    """Progress within a step or an evaluation: 3 of 8 micro-batches."""

    what: str
    """``micro_batches``, ``evaluation``, ``answers``, ``probe``, ``samples`` or ``checkpoint``."""
    done: int = 0
    total: int = 0
    """Number of all; 0 if they are not counted."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """``state.json``, replaced atomically; ``updated`` is the heartbeat in Unix seconds."""

    state: str
    reason: str = ""
    pid: int | None = None
    pid_started: str | None = None
    host: str = ""
    step: int = 0
    total_steps: int = 0
    updated: float = 0.0
    socket: str | None = None
    step_started: float | None = None
    """Start of the present step, in Unix seconds; None between steps."""
    memory_events: str | None = None
    """File in which the worker's control group counts OOM kills."""
    memory_kills: int | None = None
    """OOM kills counted when the worker started."""
    beat: float | None = None
    """Heartbeat by :func:`time.monotonic`, which cannot be set; valid while the process that wrote it lives."""
    pending: tuple[str, ...] = ()
    """Requests that wait for the end of the step: pause, checkpoint, skip_evaluation, park, stop."""
    progress: StepProgress | None = None
    """Progress of the present step or evaluation; None between them."""
    refused: str = ""
    """Missed bars of ``eval.gate`` of a finished run; empty if it passes."""
    parked: str = ""
    """Why a paused run has given its device back; empty while it holds it."""

    @property
    def exit_code(self) -> int | None:
        """The exit code for an end state; None for any other."""
        return EXIT_REFUSED if self.state == "finished" and self.refused else EXIT_CODES.get(self.state)

    @property
    def word(self) -> str:
        """The state to display: a run that has given its device back is ``parked``."""
        return "parked" if self.parked and self.state == "paused" else self.state

    @property
    def is_over(self) -> bool:
        """True if the run will do nothing more by itself."""
        return self.state in END_STATES or self.state == "lost"

    def write(self, path: Path) -> None:
        """Replace ``state.json``; only an end state is fsynced, as a heartbeat need not survive a power cut.

        If the disk has no room for a second file, it is overwritten in place.

        Raises:
            OSError: If it cannot be written either way.
        """
        data = (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode("utf-8")
        durable = self.state in END_STATES
        try:
            write_atomic(path, data, durable=durable)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            try:
                overwrite(path, data, durable=durable)
            except OSError:
                raise error from None

    @classmethod
    def read(cls, path: Path) -> RunState | None:
        """The state in a file, its texts safe to show; None if it is missing, unreadable or of an unknown state."""
        # Read twice, as a file that is overwritten in place may be half-written.
        data = _load_state(path) or _load_state(path)
        if data is None:
            return None
        values = {name: data[name] for name in _FIELDS if name in data}
        pending, progress = _pending(values.pop("pending", None)), _progress(values.pop("progress", None))
        if "state" not in values or not all(_is_sound(name, value) for name, value in values.items()):
            return None
        values.update({name: one_line(values[name]) for name in _TEXTS if name in values})
        return cls(**values, pending=pending, progress=progress)


# The list of runs reads hundreds of states at once.
_FIELDS = tuple(item.name for item in dataclasses.fields(RunState))


def _pending(value: Any) -> tuple[str, ...]:
    """Pending requests in a file, without requests that this version does not know."""
    return tuple(name for name in PENDING if name in value) if isinstance(value, list) else ()


def _progress(value: Any) -> StepProgress | None:
    """The progress in a file; None if it is missing or invalid."""
    if not isinstance(value, dict):
        return None
    what, done, total = value.get("what"), value.get("done"), value.get("total")
    if not isinstance(what, str) or type(done) is not int or type(total) is not int:
        return None
    is_sound = done in _COUNTS and total in _COUNTS and (done <= total or not total)
    return StepProgress(one_line(what, 40), done, total) if is_sound else None


def _load_state(path: Path) -> dict[str, Any] | None:
    try:
        data: Any = read_json(path, FILE_LIMIT)
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _is_sound(name: str, value: Any) -> bool:
    """True if a value of ``state.json`` has the type of its field."""
    if value is None:
        return name in ("pid", "pid_started", "socket", "step_started", "memory_events", "memory_kills", "beat")
    if name in ("updated", "step_started", "beat"):
        return type(value) in (int, float) and abs(value) <= TIME_LIMIT
    if name == "state":
        return isinstance(value, str) and (value in ACTIVE_STATES or value in END_STATES)
    if name in ("pid", "step", "total_steps", "memory_kills"):
        return type(value) is int and value in (_PIDS if name == "pid" else _COUNTS)
    # No path or identity contains a NUL.
    return isinstance(value, str) and (name in _TEXTS or "\0" not in value)


def infer_state(recorded: RunState, *, now: float | None = None) -> RunState:
    """Infer the present state from a recorded one: ``lost`` if its process is gone, ``stalled`` if its heartbeat is
    old.

    Args:
        recorded: Content of ``state.json``.
        now: Unix seconds to compute the heartbeat's age with; by default the present, or the monotonic clock for a
            process of this machine.

    Returns:
        The same state, or one with ``state`` and ``reason`` replaced.
    """
    if recorded.state not in ACTIVE_STATES:
        return recorded
    on_this_host = not recorded.host or recorded.host == hostname()
    if recorded.pid is None:
        age = _wall_age(recorded, now)
        if recorded.state == "queued" and abs(age) < QUEUED_SECONDS:
            return recorded
        return dataclasses.replace(recorded, state="lost", reason="its process never started")
    if on_this_host and not is_same_process(recorded.pid, recorded.pid_started):
        reason = f"its process {recorded.pid} is gone and wrote no end; see worker.log"
        return dataclasses.replace(recorded, state="lost", reason=reason)
    age = _age(recorded) if on_this_host and now is None else _wall_age(recorded, now)
    if abs(age) <= STALE_SECONDS:
        return recorded
    if age < 0:
        reason = f"its last sign of life lies {_duration(-age)} in the future, as if the clock had been set back"
        return dataclasses.replace(recorded, state="stalled", reason=reason)
    reason = f"no sign of life for {_duration(age)}"
    if recorded.step_started is not None and recorded.updated >= recorded.step_started:
        running = age + recorded.updated - recorded.step_started
        reason += f"; step {recorded.step + 1} has been running for {_duration(running)}"
    return dataclasses.replace(recorded, state="stalled", reason=reason)


def _age(recorded: RunState) -> float:
    """Seconds since the heartbeat of a process that lives on this machine."""
    age = time.monotonic() - recorded.beat if recorded.beat is not None else -1.0
    # A heartbeat in the future is not of this process.
    return age if age >= 0 else _wall_age(recorded, None)


def _wall_age(recorded: RunState, now: float | None) -> float:
    """Seconds since the heartbeat by the wall clock; negative if that was set back."""
    return (time.time() if now is None else now) - recorded.updated


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else format_duration(seconds)


#: Hint for the user.
MEMORY_ADVICE = (
    "lower train.micro_batch_size or train.max_length, take fewer rows or a smaller model, close other programs, or "
    "give it more memory"
)
#: Beginning of each message.
KILLED = "killed by the kernel"
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
        return f"{KILLED}, as {where} ran out of memory; {MEMORY_ADVICE}"
    if recorded.memory_events and recorded.memory_kills is not None:
        count = read_kills(Path(recorded.memory_events))
        if count is not None and count > recorded.memory_kills:
            return f"{KILLED}, as its control group ran out of memory; {MEMORY_ADVICE}"
    if (figures := _last_figures(events)) is not None and figures[0] >= FULL_SHARE * figures[1]:
        used, total = map(format_bytes, figures)
        return f"probably {KILLED}: {used} of {total} memory were in use when it was last heard; {MEMORY_ADVICE}"
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
    """True if, by the kernel's messages, it killed a process because the control group ran out of memory; False if the
    machine did; None for neither.
    """
    texts = [_kernel_messages()]
    for path in _LOGS:
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_mtime >= since:
                    file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
                    texts.append(file.read(_TAIL_BYTES) or b"")
        except OSError:
            continue  # most systems have a single one, readable by some
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
        # Reading fails behind the last message; if it fails earlier, the messages so far count.
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
    event = next(last_events(events, HardwareEvent), None)
    if event is None:
        return None
    # Records of earlier versions have it in the CPU's entry.
    cpus = [device for device in event.devices if device.get("kind") == "cpu"]
    host = (event.host_memory_used, event.host_memory_total)
    for used, total in (host, *((cpu.get("memory_used"), cpu.get("memory_total")) for cpu in cpus)):
        if type(used) is int and type(total) is int and total > 0:
            return used, total
    return None


#: Most processes of a run, and the largest file of them, in bytes.
MOST_RANKS, RANKS_LIMIT = 4096, 1 << 20
#: Seconds without a sign of life after which a process is shown as silent; it gives one every second.
SILENT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A process of a run.

    Args:
        rank: Its number.
        host: The machine that it runs on.
        pid: Its process id there; None while it has not begun.
        device: Its device: ``cuda:0``, ``cpu``.
        heard: Its last sign of life, in Unix seconds by the clock of the machine that keeps the record; None if signs
            are not collected.
        is_waiting: Whether it was then waiting for the others.
    """

    rank: int
    host: str = ""
    pid: int | None = None
    device: str = ""
    heard: float | None = None
    is_waiting: bool = False

    def silent_seconds(self, now: float) -> float | None:
        """Seconds since its last sign of life; None if unknown."""
        return None if self.heard is None else max(now - self.heard, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Rank | None:
        """A rank from untrusted JSON; None if it is invalid."""
        if not isinstance(value, dict) or not _is_count(value.get("rank")):
            return None
        pid = value.get("pid")
        return cls(
            rank=value["rank"],
            host=_short_text(value.get("host")),
            pid=pid if _is_count(pid) else None,
            device=_short_text(value.get("device")),
            heard=_moment(value.get("heard")),
            is_waiting=value.get("is_waiting") is True,
        )

    @classmethod
    def all_from(cls, values: Iterable[Any]) -> tuple[Rank, ...]:
        """Ranks in JSON, by number; invalid ones are left out."""
        found = {rank.rank: rank for value in values if (rank := cls.from_dict(value)) is not None}
        return tuple(found[number] for number in sorted(found)[:MOST_RANKS])


def ranks_path(directory: Path) -> Path:
    """File of the processes in a run directory."""
    return directory / "ranks.json"


def write_ranks(directory: Path, ranks: Sequence[Rank]) -> None:
    """Replace the list of a run's processes.

    Raises:
        OSError: If it cannot be written.
    """
    data = json.dumps({"ranks": [rank.to_dict() for rank in ranks]})
    write_atomic(ranks_path(directory), data + "\n", durable=False)


def read_ranks(directory: Path) -> tuple[Rank, ...]:
    """Processes of a run as last recorded in its directory; empty for a run of one."""
    try:
        data: Any = read_json(ranks_path(directory), RANKS_LIMIT)
    except (OSError, ValueError):
        return ()
    values = data.get("ranks") if isinstance(data, dict) else None
    return Rank.all_from(values) if isinstance(values, list) else ()


def rank_words(ranks: Sequence[Rank]) -> str:
    """The processes in words: ``4 processes on 2 machines: head (cuda:0, cuda:1), tower (cuda:0, cuda:1)``."""
    hosts: dict[str, list[str]] = {}
    for rank in ranks:
        hosts.setdefault(rank.host, []).append(rank.device or "?")
    where = ", ".join(f"{host or '?'} ({', '.join(devices)})" for host, devices in hosts.items())
    machines = f" on {len(hosts)} machines" if len(hosts) > 1 else ""
    return f"{counted(len(ranks), 'process', 'processes')}{machines}: {where}"


def sign_words(rank: Rank, now: float) -> str:
    """The last sign of life of a process in words: ``1s ago``; ``–`` if unknown."""
    seconds = rank.silent_seconds(now)
    if seconds is None:
        return "–"
    # Whole seconds: tenths would only flicker.
    return f"{f'{seconds:.0f}s' if seconds < 60 else format_duration(seconds)} ago"


def silent_words(ranks: Sequence[Rank], now: float) -> str:
    """Processes without a sign of life, ``no sign of life for 14s: 2 on tower``; empty if all give one."""
    silent = {rank: seconds for rank in ranks if (seconds := rank.silent_seconds(now) or 0.0) > SILENT_SECONDS}
    if not silent:
        return ""
    where = ", ".join(f"{rank.rank} on {rank.host or '?'}" for rank in silent)
    return f"no sign of life for {format_duration(round(max(silent.values())))}: {where}"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _moment(value: Any) -> float | None:
    # NaN and times beyond the calendar compare as false.
    return float(value) if type(value) in (int, float) and abs(value) <= TIME_LIMIT else None


def _short_text(value: Any) -> str:
    return one_line(value, 200) if isinstance(value, str) else ""

"""Run state: the content of ``state.json``, and the state that a reader infers from it."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.atomic import NO_ROOM, overwrite, write_atomic
from core.runs.events import TIME_LIMIT
from core.runs.process import hostname, is_same_process
from core.runs.protocol import PENDING
from core.small_files import read_json
from core.text import one_line
from core.units import format_duration

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

#: What ``parked`` says of a run that a person has parked, which comes back when a person asks for it.
PARKED_BY_HAND = "on request"
#: Fields that are shown.
_TEXTS = ("reason", "host", "refused", "parked")
#: States as the end of a sentence about a run, where "is" and the state would not do.
_PHRASES = {"failed": "has failed", "stopped": "was stopped"}

EXIT_CODES = {"finished": 0, "stopped": 3, "failed": 4}
#: That of a finished run whose result misses a bar of ``eval.gate``.
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
    """Of how many; 0 where they are not counted."""


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
    """Requests that were heard and wait for the end of the step: pause, checkpoint, skip_evaluation, park, stop."""
    progress: StepProgress | None = None
    """How far the present step or evaluation is; None between them."""
    refused: str = ""
    """What the result of a finished run misses of ``eval.gate``; empty where it passes."""
    parked: str = ""
    """Why a paused run has given its device back; empty while it holds it."""

    @property
    def exit_code(self) -> int | None:
        """The exit code for an end state; None for any other."""
        return EXIT_REFUSED if self.state == "finished" and self.refused else EXIT_CODES.get(self.state)

    @property
    def word(self) -> str:
        """The state as it is shown: a run that has given its device back is ``parked``."""
        return "parked" if self.parked and self.state == "paused" else self.state

    @property
    def is_over(self) -> bool:
        """Whether the run will do nothing more by itself."""
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
        # Read again, as a file that is overwritten in place may be read half-written.
        data = _load(path) or _load(path)
        if data is None:
            return None
        values = {item.name: data[item.name] for item in dataclasses.fields(cls) if item.name in data}
        pending, progress = _pending(values.pop("pending", None)), _progress(values.pop("progress", None))
        if "state" not in values or not all(_is_sound(name, value) for name, value in values.items()):
            return None
        values.update({name: one_line(values[name]) for name in _TEXTS if name in values})
        return cls(**values, pending=pending, progress=progress)


def _pending(value: Any) -> tuple[str, ...]:
    """The pending requests in a file; those that this version does not know are left out."""
    return tuple(name for name in PENDING if name in value) if isinstance(value, list) else ()


def _progress(value: Any) -> StepProgress | None:
    """The progress in a file; None where there is none or it makes no sense."""
    if not isinstance(value, dict):
        return None
    what, done, total = value.get("what"), value.get("done"), value.get("total")
    if not isinstance(what, str) or type(done) is not int or type(total) is not int:
        return None
    is_sound = done in _COUNTS and total in _COUNTS and (done <= total or not total)
    return StepProgress(one_line(what, 40), done, total) if is_sound else None


def _load(path: Path) -> dict[str, Any] | None:
    try:
        data: Any = read_json(path, FILE_LIMIT)
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _is_sound(name: str, value: Any) -> bool:
    """Whether a value of ``state.json`` has the type of its field."""
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

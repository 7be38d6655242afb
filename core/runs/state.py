"""The state of a run: what ``state.json`` says, and what a reader makes of it."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.atomic import write_atomic
from core.runs.process import hostname, is_same_process
from core.text import one_line

#: States that a worker writes.
ACTIVE_STATES = frozenset({"queued", "starting", "training", "paused", "stopping"})
END_STATES = frozenset({"finished", "stopped", "failed"})
#: States that only a reader infers.
INFERRED_STATES = frozenset({"lost", "stalled"})

#: Seconds without a heartbeat after which a live worker counts as stalled; it writes one at least every five.
STALE_SECONDS = 30.0
#: Seconds that a queued run may have no process before it counts as lost.
QUEUED_SECONDS = 60.0

EXIT_CODES = {"finished": 0, "stopped": 3, "failed": 4}


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
    """Since when the step under way runs, in Unix seconds; None between steps."""
    memory_events: str | None = None
    """The file in which the worker's control group counts what was killed for want of memory."""
    memory_kills: int | None = None
    """What it counted when the worker began."""

    @property
    def is_over(self) -> bool:
        """Whether the run will do nothing more by itself."""
        return self.state in END_STATES or self.state == "lost"

    def write(self, path: Path) -> None:
        """Replace ``state.json``; only an end state is fsynced, as a heartbeat need not survive a power cut."""
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        write_atomic(path, text, durable=self.state in END_STATES)

    @classmethod
    def read(cls, path: Path) -> RunState | None:
        """What the file says, its texts safe to show; None when it is missing, unreadable or of an unknown state."""
        try:
            data: Any = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(data, dict):
            return None
        values = {item.name: data[item.name] for item in dataclasses.fields(cls) if item.name in data}
        if "state" not in values or not all(_is_sound(name, value) for name, value in values.items()):
            return None
        values.update({name: one_line(values[name]) for name in ("reason", "host") if name in values})
        return cls(**values)


def _is_sound(name: str, value: Any) -> bool:
    """Whether a value of ``state.json`` is of the type that its name promises."""
    if value is None:
        return name in ("pid", "pid_started", "socket", "step_started", "memory_events", "memory_kills")
    if name in ("updated", "step_started"):
        return type(value) in (int, float) and abs(value) < 1e15
    if name == "state":
        return isinstance(value, str) and (value in ACTIVE_STATES or value in END_STATES)
    if name in ("pid", "step", "total_steps", "memory_kills"):
        return type(value) is int and 0 <= value < 2**63
    return isinstance(value, str)


def infer_state(recorded: RunState, *, now: float | None = None) -> RunState:
    """What a recorded state means now: ``lost`` when its process is gone, ``stalled`` when its heartbeat is old.

    Args:
        recorded: What ``state.json`` says.
        now: Unix seconds; the present by default.

    Returns:
        The same state, or one with ``state`` and ``reason`` replaced.
    """
    if recorded.state not in ACTIVE_STATES:
        return recorded
    now = time.time() if now is None else now
    age = now - recorded.updated
    on_this_host = not recorded.host or recorded.host == hostname()
    if recorded.pid is None:
        if recorded.state == "queued" and age < QUEUED_SECONDS:
            return recorded
        return dataclasses.replace(recorded, state="lost", reason="its process never started")
    if on_this_host and not is_same_process(recorded.pid, recorded.pid_started):
        reason = f"its process {recorded.pid} is gone and wrote no end; see worker.log"
        return dataclasses.replace(recorded, state="lost", reason=reason)
    if age > STALE_SECONDS:
        reason = f"no sign of life for {age:.0f} s"
        if recorded.step_started is not None:
            reason += f"; step {recorded.step + 1} has been running for {now - recorded.step_started:.0f} s"
        return dataclasses.replace(recorded, state="stalled", reason=reason)
    return recorded

"""Queue entry: a run that waits for the device, is active, or has ended; and the states it passes through."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from core.runs.record.events import TIME_LIMIT
from core.text import one_line

EntryState = Literal["waiting", "held", "starting", "running", "done", "failed", "skipped", "removed"]
STATES: frozenset[str] = frozenset(get_args(EntryState))
#: States of an entry that has the device, or is about to take it.
ACTIVE: frozenset[str] = frozenset({"starting", "running"})
#: States of an entry that is still to be started.
PENDING: frozenset[str] = frozenset({"waiting", "held"})
ENDED: frozenset[str] = frozenset({"done", "failed", "skipped", "removed"})

#: By state: the states that may follow. ``starting`` follows ``running`` if a reboot ended a run without a checkpoint,
#: which then starts again; ``waiting`` follows an end if the entry is put back.
FOLLOWS: Mapping[str, frozenset[str]] = {
    "waiting": frozenset({"held", "starting", "skipped", "removed"}),
    "held": frozenset({"waiting", "removed"}),
    "starting": frozenset({"running", "done", "failed", "skipped"}),
    "running": frozenset({"starting", "done", "failed"}),
    "done": frozenset({"waiting"}),
    "failed": frozenset({"waiting"}),
    "skipped": frozenset({"waiting"}),
    "removed": frozenset(),
}

#: Beginning of the reason why the run of a done entry has no index; the end of the run may come before it.
NO_INDEX = "its index "
#: Ids, counts, and the longest text of an entry.
COUNTS, _TEXT = range(1, 1 << 31), 2000
#: Text fields that are only displayed.
_SHOWN = ("name", "reason", "source", "outcome")


def words_of(values: Mapping[str, Any]) -> str:
    """The values of a variant, short: ``learning_rate 0.0001, rank 8``."""
    return ", ".join(f"{name.rpartition('.')[2]} {word(value)}" for name, value in values.items())


def word(value: Any) -> str:
    """A value of a variant, short and safe to show; of a path its last part."""
    if isinstance(value, str):
        value = value.rstrip("/").rpartition("/")[2]
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else one_line(str(value), 40)


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """An entry of the queue. Its configuration is in a file of its own, as of the time when the entry was added."""

    id: int
    name: str
    """Subject of the run; its slug ends the run id."""
    state: EntryState = "waiting"
    added: float = 0.0
    """Unix seconds."""
    source: str = ""
    """The file that the configuration was read from; may be empty."""
    overrides: tuple[str, ...] = ()
    """``section.key=value`` on top of the file."""
    run: str | None = None
    """Id of its run, written before the run is started."""
    starts: int = 0
    """Starts in a row that gave no process, or no end of its index; see :data:`core.queue.runner.MOST_STARTS`."""
    continued: str | None = None
    """Boot id of the boot in which the run was continued after a reboot; None if it never was."""
    reason: str = ""
    """Why it is in its state; may be empty."""
    outcome: str = ""
    """End state of its run: finished, stopped, failed or lost; empty before the end. An entry that is running with one
    waits for the index of its run."""
    begun: float | None = None
    """Start of its run, in Unix seconds."""
    ended: float | None = None
    """End of its run, in Unix seconds."""
    sweep: str | None = None
    """Id of the sweep that it belongs to."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Options that the sweep varies, ``section.key`` to this entry's value."""

    @property
    def title(self) -> str:
        """Its name for a list; for a variant, the sweep and its values: ``s1: learning_rate 0.0001, rank 8``."""
        return self.name if self.sweep is None else f"{self.sweep}: {words_of(self.values)}"

    @property
    def is_over(self) -> bool:
        """True if the entry has ended or was removed."""
        return self.state in ENDED

    @property
    def trouble(self) -> str:
        """The reason why it failed or was skipped, or its run has no index; empty for others."""
        if self.state in ("failed", "skipped"):
            return self.reason
        return self.reason[self.reason.find(NO_INDEX) :] if self.is_over and NO_INDEX in self.reason else ""

    @property
    def is_indexing(self) -> bool:
        """True if its run has finished, and the index of the run's rows is being made."""
        return self.state == "running" and bool(self.outcome)

    def moved(self, state: EntryState, **changes: Any) -> QueueEntry:
        """The entry in another state.

        Raises:
            ValueError: If that state cannot follow its present one.
        """
        if state not in FOLLOWS[self.state]:
            raise ValueError(f"entry {self.id} is {self.state} and cannot become {state}")
        return dataclasses.replace(self, state=state, **changes)

    def put_back(self) -> QueueEntry:
        """The ended entry as it waits for a new run.

        Raises:
            ValueError: If it has not ended, or was removed.
        """
        nothing = {"reason": "", "outcome": "", "begun": None, "ended": None}
        return self.moved("waiting", run=None, starts=0, continued=None, **nothing)

    def to_dict(self) -> dict[str, Any]:
        """The entry as in ``queue.json``."""
        found = dataclasses.asdict(self)
        # File names may have bytes that are not UTF-8.
        found |= {name: one_line(found[name], _TEXT) for name in _SHOWN}
        return found | {"overrides": list(self.overrides), "values": dict(self.values)}

    @classmethod
    def from_dict(cls, data: Any) -> QueueEntry:
        """Read an entry, its texts safe to show; unknown fields are ignored.

        Raises:
            ValueError: If a field is missing or invalid; the message names it.
        """
        if not isinstance(data, dict):
            raise ValueError("an entry is not an object")
        known = {item.name: data[item.name] for item in dataclasses.fields(cls) if item.name in data}
        for name in ("id", "name", "state"):
            if name not in known:
                raise ValueError(f"an entry has no {name}")
        for name, value in known.items():
            if not _is_sound(name, value):
                raise ValueError(f"{name} of entry {one_line(str(known['id']), 20)} makes no sense")
        for name in _SHOWN:
            if name in known:
                known[name] = one_line(known[name], _TEXT)
        known["overrides"] = tuple(known.get("overrides", ()))
        return cls(**known)


def _is_sound(name: str, value: Any) -> bool:
    if name == "id":
        return type(value) is int and value in COUNTS
    if name == "starts":
        return type(value) is int and 0 <= value < COUNTS.stop
    if name == "state":
        return isinstance(value, str) and value in STATES
    if name in ("begun", "ended", "added"):
        return is_time(value) or (value is None and name != "added")
    if name == "run":
        return value is None or (isinstance(value, str) and is_run_id(value))
    if name in ("continued", "sweep"):
        return value is None or isinstance(value, str)
    if name == "overrides":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if name == "values":
        return isinstance(value, dict)
    return isinstance(value, str)


def is_time(value: Any) -> bool:
    """True if a value is a plausible time in Unix seconds."""
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= TIME_LIMIT


def is_run_id(text: str) -> bool:
    """True if a text is a valid name of a run directory, and leads nowhere else."""
    return bool(text) and text not in (".", "..") and not set(text) & {"/", "\0"} and len(text) <= 200

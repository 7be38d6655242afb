"""Queue as a value: its entries in order, and the changes to them. No files are touched here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError
from core.queue.entry import ACTIVE, COUNTS, ENDED, NO_INDEX, PENDING, EntryState, QueueEntry, is_time
from core.queue.night import Night
from core.small_files import parse_json
from core.text import one_line

#: Version of ``queue.json``.
FORMAT = 1


@dataclass(frozen=True)
class Queue:
    """The queue.

    Args:
        entries: All entries, waiting ones in the order of their start; ended entries stay until the queue is cleared.
        next_id: Id of the next entry; ids are never reused.
        next_sweep: Number of the next sweep.
        night: Limits for all runs that start.
    """

    entries: tuple[QueueEntry, ...] = ()
    next_id: int = 1
    next_sweep: int = 1
    night: Night = field(default_factory=Night)

    @property
    def active(self) -> QueueEntry | None:
        """The entry that has the device, or is about to take it; None without one."""
        return next((entry for entry in self.entries if entry.state in ACTIVE), None)

    @property
    def upcoming(self) -> list[QueueEntry]:
        """The entries that wait or are held, in order."""
        return [entry for entry in self.entries if entry.state in PENDING]

    @property
    def next_waiting(self) -> QueueEntry | None:
        """The entry to start next; None if none waits."""
        return next((entry for entry in self.entries if entry.state == "waiting"), None)

    @property
    def reserved(self) -> frozenset[str]:
        """Run ids of entries, whether or not the runs exist."""
        return frozenset(entry.run for entry in self.entries if entry.run is not None)

    def entry(self, entry_id: int) -> QueueEntry:
        """The entry with an id.

        Raises:
            UserError: If there is none, or it was removed.
        """
        for entry in self.entries:
            if entry.id == entry_id and entry.state != "removed":
                return entry
        raise UserError(f"There is no entry {entry_id} in the queue.", "'localtune-tui queue list' shows them.")

    def of_sweep(self, sweep: str) -> list[QueueEntry]:
        """The entries of a sweep that were not removed, in order of their ids.

        Raises:
            UserError: If there is none.
        """
        found = [entry for entry in self.entries if entry.sweep == sweep and entry.state != "removed"]
        if not found:
            there = (entry for entry in self.entries if entry.state != "removed")
            known = sorted({entry.sweep for entry in there if entry.sweep is not None})
            are = "is" if len(known) == 1 else "are"
            hint = f"There {are} {', '.join(known)}." if known else "Start one with 'localtune-tui queue sweep'."
            raise UserError(f"There is no sweep {one_line(sweep, 40)} in the queue.", hint)
        return sorted(found, key=lambda entry: entry.id)

    def with_added(self, entries: Sequence[QueueEntry]) -> Queue:
        """The queue with entries appended, which get the next ids.

        Raises:
            UserError: If no ids are left.
        """
        self._refuse_beyond(self.next_id + len(entries))
        added = [dataclasses.replace(entry, id=self.next_id + number) for number, entry in enumerate(entries)]
        return dataclasses.replace(self, entries=(*self.entries, *added), next_id=self.next_id + len(added))

    def with_sweep(self) -> tuple[Queue, str]:
        """The queue with one more sweep, and the id of the sweep.

        Raises:
            UserError: If no ids are left.
        """
        self._refuse_beyond(self.next_sweep + 1)
        return dataclasses.replace(self, next_sweep=self.next_sweep + 1), f"s{self.next_sweep}"

    @staticmethod
    def _refuse_beyond(following: int) -> None:
        if following > COUNTS.stop:
            raise UserError(
                "The queue has no number left for another entry.",
                "When it has done its work, move queue.json away: a new one begins with 1.",
            )

    def with_entry(self, changed: QueueEntry) -> Queue:
        """The queue with one entry replaced."""
        entries = tuple(changed if entry.id == changed.id else entry for entry in self.entries)
        return dataclasses.replace(self, entries=entries)

    def held(self, entry_id: int) -> Queue:
        """The queue with a waiting entry held.

        Raises:
            UserError: If it does not wait.
        """
        return self._move(entry_id, "held", "held", ("waiting",))

    def released(self, entry_id: int) -> Queue:
        """The queue with a held entry released, or an ended one put back at the end, for a new run.

        Raises:
            UserError: If it is neither held nor over.
        """
        if (entry := self.entry(entry_id)).is_over:
            return self.with_entry(entry.put_back()).with_position(entry_id, len(self.entries))
        return self._move(entry_id, "waiting", "released", ("held",))

    def removed(self, entry_id: int) -> Queue:
        """The queue with an entry removed before its start; with one done whose index is being made.

        Raises:
            UserError: If it has been started, and its run has not finished.
        """
        if (entry := self.entry(entry_id)).is_indexing:
            why = f"{NO_INDEX}was given up; localtune-tui why {entry.run} --index makes it"
            return self.with_entry(entry.moved("done", reason="; ".join(filter(None, (entry.reason, why)))))
        return self._move(entry_id, "removed", "removed", ("waiting", "held"))

    def _move(self, entry_id: int, state: EntryState, done: str, allowed: Sequence[str]) -> Queue:
        entry = self.entry(entry_id)
        if entry.state in allowed:
            return self.with_entry(entry.moved(state))
        same = f"Entry {entry_id} is {state} already."
        cannot = f"Entry {entry_id} is {entry.state} and cannot be {done}."
        raise UserError(same if entry.state == state else cannot, self._way(entry, done))

    @staticmethod
    def _way(entry: QueueEntry, done: str) -> str:
        if entry.is_indexing:
            return f"Its run has finished: 'localtune-tui queue remove {entry.id}' gives up its index."
        if entry.state in ACTIVE:
            return f"Its run is {entry.run}: 'localtune-tui stop {entry.run}' stops it, and the queue goes on."
        if entry.state in ENDED and done == "removed":
            return "'localtune-tui queue clear' takes out all that have ended."
        return "'localtune-tui queue list' shows what each one does."

    def with_position(self, entry_id: int, position: int) -> Queue:
        """The queue with an entry at another place among the upcoming entries; 1 is the next to start, and a place
        beyond the end is the end.

        Raises:
            UserError: If it has been started.
        """
        entry, upcoming = self.entry(entry_id), self.upcoming
        if entry not in upcoming:
            raise UserError(f"Entry {entry_id} is {entry.state} and cannot be moved.", self._way(entry, "moved"))
        others = [other for other in upcoming if other.id != entry_id]
        index = min(max(position, 1) - 1, len(others))
        order = [*others[:index], entry, *others[index:]]
        started = [other for other in self.entries if other.state not in PENDING]
        return dataclasses.replace(self, entries=(*started, *order))

    def cleared(self) -> Queue:
        """The queue without ended entries."""
        return dataclasses.replace(self, entries=tuple(entry for entry in self.entries if not entry.is_over))

    def dumps(self, indent: int | None = 1) -> str:
        """The text of ``queue.json``; on one line without an indent."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "next_id": self.next_id,
            "next_sweep": self.next_sweep,
            "entries": [entry.to_dict() for entry in self.entries],
        }
        if self.night.values:
            data["night"] = {"values": dict(self.night.values), "since": self.night.since}
        return json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def loads(cls, text: str) -> Queue:
        """Read ``queue.json``.

        Raises:
            ValueError: If it is invalid, is of another version, or does not survive being written and read again; the
                message has the reason.
        """
        queue = cls._parsed(text)
        try:
            is_itself = cls._parsed(queue.dumps(None).encode("utf-8").decode("utf-8")) == queue
        except (ValueError, RecursionError) as error:
            raise ValueError("it has what cannot be written again") from error
        if not is_itself:
            raise ValueError("it would be another one when it is written again")
        return queue

    @classmethod
    def _parsed(cls, text: str) -> Queue:
        data: Any = parse_json(text)
        if not isinstance(data, dict) or not isinstance(data.get("entries"), list):
            raise ValueError("it has no entries")
        if data.get("format") != FORMAT:
            raise ValueError("it is of another version of localtune-tui")
        entries = tuple(QueueEntry.from_dict(item) for item in data["entries"])
        if len({entry.id for entry in entries}) < len(entries):
            raise ValueError("two entries have one id")
        runs = [entry.run for entry in entries if entry.run is not None]
        if len(set(runs)) < len(runs):
            raise ValueError("two entries have one run")
        highest = max((entry.id for entry in entries), default=0)
        number = max(_number(data, "next_id"), highest + 1)
        return cls(entries, number, _number(data, "next_sweep"), _night(data.get("night")))


def _night(data: Any) -> Night:
    """The limits of the night in ``queue.json``."""
    if data is None:
        return Night()
    values: Any = data.get("values") if isinstance(data, dict) else None
    since: Any = data.get("since") if isinstance(data, dict) else None
    if not isinstance(values, dict) or not is_time(since) or since < 0:
        raise ValueError("its night makes no sense")
    try:
        return Night.read(values, since)
    except UserError as error:
        raise ValueError(error.message) from error


def _number(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    if type(value) is not int or not 1 <= value <= COUNTS.stop:
        raise ValueError(f"{name} is not a number from 1 to {COUNTS.stop}")
    return value

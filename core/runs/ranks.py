"""Ranks of a run: its processes, where each is, and when each has last given a sign of life.

A run of several processes has them in ``ranks.json``, replaced every few seconds by the one that hears them all: the
supervisor, or the first process where another program has started them, which then knows no signs of life.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.atomic import write_atomic
from core.runs.events import TIME_LIMIT
from core.small_files import read_json
from core.text import one_line
from core.units import format_duration

if TYPE_CHECKING:
    from core.runs.store import Run

#: Most processes of a run, and the largest file of them, in bytes.
MOST_RANKS, FILE_LIMIT = 4096, 1 << 20
#: Seconds without a sign of life after which a process is shown as silent; it gives one every second.
SILENT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A process of a run.

    Args:
        rank: Its number.
        host: The machine that it runs on.
        pid: Its process id there; None while it has not begun.
        device: What it trains on: ``cuda:0``, ``cpu``.
        heard: Its last sign of life, in Unix seconds by the clock of the machine that keeps the record; None where
            nobody hears them.
        is_waiting: Whether it said then that it waits for the others.
    """

    rank: int
    host: str = ""
    pid: int | None = None
    device: str = ""
    heard: float | None = None
    is_waiting: bool = False

    def silent_seconds(self, now: float) -> float | None:
        """Seconds since its last sign of life; None where they are not known."""
        return None if self.heard is None else max(now - self.heard, 0.0)

    def is_silent(self, now: float) -> bool:
        """Whether it has given no sign of life for longer than usual."""
        seconds = self.silent_seconds(now)
        return seconds is not None and seconds > SILENT_SECONDS

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Rank | None:
        """From JSON that may be of anybody; None if it is no rank."""
        if not isinstance(value, dict) or not _is_count(value.get("rank")):
            return None
        pid = value.get("pid")
        return cls(
            rank=value["rank"],
            host=_text(value.get("host")),
            pid=pid if _is_count(pid) else None,
            device=_text(value.get("device")),
            heard=_time(value.get("heard")),
            is_waiting=value.get("is_waiting") is True,
        )

    @classmethod
    def all_from(cls, values: Iterable[Any]) -> tuple[Rank, ...]:
        """The ranks in JSON, by number; what is none is left out."""
        found = {rank.rank: rank for value in values if (rank := cls.from_dict(value)) is not None}
        return tuple(found[number] for number in sorted(found)[:MOST_RANKS])


def ranks_path(run: Run) -> Path:
    """The file of a run's processes."""
    return run.path / "ranks.json"


def write_ranks(run: Run, ranks: Sequence[Rank]) -> None:
    """Replace the record of a run's processes.

    Raises:
        OSError: If it cannot be written.
    """
    data = json.dumps({"ranks": [rank.to_dict() for rank in ranks]})
    write_atomic(ranks_path(run), data + "\n", durable=False)


def read_ranks(run: Run) -> tuple[Rank, ...]:
    """The processes of a run as last recorded; empty for a run of one."""
    try:
        data: Any = read_json(ranks_path(run), FILE_LIMIT)
    except (OSError, ValueError):
        return ()
    values = data.get("ranks") if isinstance(data, dict) else None
    return Rank.all_from(values) if isinstance(values, list) else ()


def in_words(ranks: Sequence[Rank]) -> str:
    """The processes in words: ``4 processes on 2 machines: head (cuda:0, cuda:1), tower (cuda:0, cuda:1)``."""
    hosts: dict[str, list[str]] = {}
    for rank in ranks:
        hosts.setdefault(rank.host, []).append(rank.device or "?")
    where = ", ".join(f"{host or '?'} ({', '.join(devices)})" for host, devices in hosts.items())
    machines = f" on {len(hosts)} machines" if len(hosts) > 1 else ""
    return f"{len(ranks)} {'process' if len(ranks) == 1 else 'processes'}{machines}: {where}"


def sign_words(rank: Rank, now: float) -> str:
    """The last sign of life of a process in words: ``1s ago``; ``–`` where it is not known."""
    seconds = rank.silent_seconds(now)
    if seconds is None:
        return "–"
    # Whole seconds: a tenth that changes at every look is noise.
    return f"{f'{seconds:.0f}s' if seconds < 60 else format_duration(seconds)} ago"


def silent_words(ranks: Sequence[Rank], now: float) -> str:
    """Those that give no sign of life, ``no sign of life for 14s: 2 on tower``; empty where all do."""
    silent = [rank for rank in ranks if rank.is_silent(now)]
    if not silent:
        return ""
    longest = max(rank.silent_seconds(now) or 0.0 for rank in silent)
    where = ", ".join(f"{rank.rank} on {rank.host or '?'}" for rank in silent)
    return f"no sign of life for {format_duration(round(longest))}: {where}"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _time(value: Any) -> float | None:
    # Not a number, and what is beyond the calendar, compare as false.
    return float(value) if type(value) in (int, float) and abs(value) <= TIME_LIMIT else None


def _text(value: Any) -> str:
    return one_line(value, 200) if isinstance(value, str) else ""

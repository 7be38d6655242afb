"""Check of a run's event record against its hash chain: lines that were changed, removed, added or moved."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from core.audit.result import MOST, Difference
from core.runs.record.chain import SHORT, Link, digits_of_lines
from core.runs.record.state import read_lines
from core.runs.record.store import EVENTS_NAME, Run
from core.small_files import open_regular, parse_json
from core.text import one_line

#: Most lines that are compared one by one; a longer change is reported as a range.
_WINDOW = 5_000
#: Most pairs of equal lines among them; repeated lines make their number quadratic.
_PAIRS = 4 * _WINDOW
#: Most lines that are read beyond the chain: a file of line breaks alone would fill the memory.
_MORE = 1_000_000
#: Longest line that is parsed for its type and step, in bytes.
_LINE_LIMIT = 1 << 20


def changed_events(run: Run, links: Sequence[Link]) -> list[Difference]:
    """Lines of the record that were changed, removed, added or moved since the links sealed them.

    Raises:
        OSError: If the record exists and cannot be read.
    """
    if all(_is_as_sealed(run.events_path, link) for link in links):
        return []
    recorded = [link.events.lines[at : at + SHORT] for link in links for at in range(0, len(link.events.lines), SHORT)]
    try:
        present = list(islice(digits_of_lines(run.events_path), len(recorded) + _MORE))
    except FileNotFoundError:
        return [Difference(what=f"{EVENTS_NAME} is gone.", file=EVENTS_NAME)]
    # Lines after the last link are not covered.
    if present[: len(recorded)] == recorded:
        present = present[: len(recorded)]
    return _compare_lines(run, recorded, present) or [
        Difference(what=f"{EVENTS_NAME} is not as it was sealed.", file=EVENTS_NAME)
    ]


def _is_as_sealed(path: Path, link: Link) -> bool:
    try:
        return _digest(path, link) == link.events.sha256
    except (OSError, OverflowError):  # a link may have any offsets
        return False


def _digest(path: Path, link: Link) -> str:
    with open_regular(path) as file:
        file.seek(link.events.begin)
        digest, left = hashlib.sha256(), link.events.end - link.events.begin
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Change:
    """A changed line; numbers count from 0.

    Args:
        place: Number of the line in the present record; for a removed line, of the line after it.
        what: The change as the end of a sentence; empty for a removed line.
        number: Number of a removed line in the original record.
    """

    place: int
    what: str = ""
    number: int = 0


def _compare_lines(run: Run, recorded: list[str], present: list[str]) -> list[Difference]:
    head = next(
        (place for place, pair in enumerate(zip(recorded, present, strict=False)) if pair[0] != pair[1]),
        min(len(recorded), len(present)),
    )
    tail = 0
    while tail < min(len(recorded), len(present)) - head and recorded[-1 - tail] == present[-1 - tail]:
        tail += 1
    before, now = recorded[head : len(recorded) - tail], present[head : len(present) - tail]
    if max(len(before), len(now)) > _WINDOW or _equal_pairs(before, now) > _PAIRS:
        return [Difference(what=f"{EVENTS_NAME}: {_stretch(head, len(before), len(now))}.", file=EVENTS_NAME)]
    changes = list(islice(_changes(head, before, now), MOST))
    events = _events_at(run.events_path, {change.place for change in changes})
    return [_told(change, events.get(change.place, {})) for change in changes]


def _equal_pairs(before: Sequence[str], now: Sequence[str]) -> int:
    """Number of pairs of equal lines, by which the cost of comparing them grows."""
    counts = Counter(now)
    return sum(count * counts[digits] for digits, count in Counter(before).items())


def _stretch(head: int, before: int, now: int) -> str:
    """A change of many lines after the first ``head`` lines, in words."""
    if not now:
        return f"{before} lines were removed after line {head}" if head else f"its first {before} lines were removed"
    if not before:
        return f"{now} lines were added {f'after line {head}' if head else 'before its first'}"
    sealed = "one line" if before == 1 else f"{before} lines"
    return f"from line {head + 1} on, {sealed} of the record were changed, removed or moved"


def _changes(head: int, before: Sequence[str], now: Sequence[str]) -> Iterator[_Change]:
    """The changes from ``before`` to ``now``, the lines after the first ``head`` of the record."""
    found = difflib.SequenceMatcher(None, before, now, autojunk=False).get_opcodes()
    added = {digits for tag, _, _, a, b in found if tag in ("insert", "replace") for digits in now[a:b]}
    gone = {digits for tag, a, b, _, _ in found if tag in ("delete", "replace") for digits in before[a:b]}
    for tag, a, b, c, d in found:
        if tag == "equal":
            continue
        changed = min(b - a, d - c)
        for place in range(c, d):
            is_moved, is_new = now[place] in gone, place - c >= changed
            what = ("was moved there" if is_moved else "was added") if is_new else "was moved" if is_moved else ""
            yield _Change(head + place, what or "was changed")
        for number in range(a + changed, b):
            if before[number] not in added:
                yield _Change(head + c + changed, number=head + number)


def _told(change: _Change, event: Mapping[str, Any]) -> Difference:
    """A change in a sentence, with the event at its place."""
    step = event.get("step") if type(event.get("step")) is int else None
    if not change.what:
        before = f", before that of step {step}" if step is not None else ""
        what = f"{EVENTS_NAME}: a line was removed, number {change.number + 1} of the record{before}."
        return Difference(what=what, file=EVENTS_NAME)
    kind = one_line(str(event.get("type", "")), 40)
    named = f" (a {kind} event{f' of step {step}' if step is not None else ''})" if kind else ""
    what = f"{EVENTS_NAME}: line {change.place + 1}{named} {change.what}."
    return Difference(what=what, file=EVENTS_NAME, step=step)


def _events_at(path: Path, places: Iterable[int]) -> dict[int, Mapping[str, Any]]:
    """The events at some places of the record; other lines are left out."""
    wanted, found = set(places), dict[int, Mapping[str, Any]]()
    try:
        with open_regular(path) as file:
            lines = read_lines(file, _LINE_LIMIT)
            for place, line in zip(range(max(wanted, default=-1) + 1), lines, strict=False):
                if place in wanted and (event := _event(line.data)) is not None:
                    found[place] = event
    except OSError:
        pass  # changes are then reported without their events
    return found


def _event(line: bytes) -> Mapping[str, Any] | None:
    try:
        found = parse_json(line, finite=False)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

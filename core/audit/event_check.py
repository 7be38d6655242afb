"""The event record of a run against its hash chain: which lines were changed, removed, added or moved."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from core.audit.result import MOST, Difference
from core.runs.chain import SHORT, Link, seal_events
from core.runs.store import EVENTS_NAME, Run
from core.text import one_line

#: Lines around a change in which it is looked for; more of them are told as a stretch.
_WINDOW = 5_000


def changed_events(run: Run, links: Sequence[Link]) -> list[Difference]:
    """Lines of the record that were changed, removed, added or moved, as said by the links of its chain.

    Raises:
        OSError: If the record is there and cannot be read.
    """
    if all(_is_as_sealed(run.events_path, link) for link in links):
        return []
    recorded = [link.events.lines[at : at + SHORT] for link in links for at in range(0, len(link.events.lines), SHORT)]
    try:
        lines = seal_events(run.events_path, 0)["lines"]
    except FileNotFoundError:
        return [Difference(what=f"{EVENTS_NAME} is gone.", file=EVENTS_NAME)]
    present = [lines[at : at + SHORT] for at in range(0, len(lines), SHORT)]
    # What comes after the last link is not covered.
    if present[: len(recorded)] == recorded:
        present = present[: len(recorded)]
    return _compare_lines(run, recorded, present) or [
        Difference(what=f"{EVENTS_NAME} is not as it was sealed.", file=EVENTS_NAME)
    ]


def _is_as_sealed(path: Path, link: Link) -> bool:
    try:
        return _digest(path, link) == link.events.sha256
    except OSError:
        return False


def _digest(path: Path, link: Link) -> str:
    with path.open("rb") as file:
        file.seek(link.events.begin)
        digest, left = hashlib.sha256(), link.events.end - link.events.begin
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _compare_lines(run: Run, recorded: list[str], present: list[str]) -> list[Difference]:
    head = next(
        (place for place, pair in enumerate(zip(recorded, present, strict=False)) if pair[0] != pair[1]),
        min(len(recorded), len(present)),
    )
    tail = 0
    while tail < min(len(recorded), len(present)) - head and recorded[-1 - tail] == present[-1 - tail]:
        tail += 1
    before, now = recorded[head : len(recorded) - tail], present[head : len(present) - tail]
    if max(len(before), len(now)) > _WINDOW:
        return [Difference(what=f"{EVENTS_NAME}: lines {head + 1} to {head + len(now)} are others.", file=EVENTS_NAME)]
    found = difflib.SequenceMatcher(None, before, now, autojunk=False).get_opcodes()
    added = {digits for tag, _, _, a, b in found if tag in ("insert", "replace") for digits in now[a:b]}
    gone = {digits for tag, a, b, _, _ in found if tag in ("delete", "replace") for digits in before[a:b]}
    told: list[Difference] = []
    for tag, a, b, c, d in found:
        if tag == "equal":
            continue
        changed = min(b - a, d - c)
        for offset in range(changed):
            what = "moved" if now[c + offset] in gone else "changed"
            told.append(_line(run, head + c + offset, f"was {what}"))
        for offset in range(changed, d - c):
            what = "was moved there" if now[c + offset] in gone else "was added"
            told.append(_line(run, head + c + offset, what))
        for offset in range(changed, b - a):
            if before[a + offset] not in added:
                told.append(_missing(run, head + c + changed, head + a + offset))
    return told[:MOST]


def _line(run: Run, number: int, what: str) -> Difference:
    """A line that is there; numbers count from 0."""
    event = _event_at(run, number)
    kind, step = one_line(str(event.get("type", "")), 40), event.get("step")
    named = f" (a {kind} event{f' of step {step}' if type(step) is int else ''})" if kind else ""
    return Difference(
        what=f"{EVENTS_NAME}: line {number + 1}{named} {what}.",
        file=EVENTS_NAME,
        step=step if type(step) is int else None,
    )


def _missing(run: Run, place: int, number: int) -> Difference:
    """A line that is not there any more."""
    event = _event_at(run, place)
    step = event.get("step")
    before = f", before that of step {step}" if type(step) is int else ""
    return Difference(
        what=f"{EVENTS_NAME}: a line was removed, the {number + 1}th of the record{before}.", file=EVENTS_NAME
    )


def _event_at(run: Run, number: int) -> Mapping[str, Any]:
    try:
        with run.events_path.open("rb") as file:
            found = json.loads(next(islice(file, number, None), b"{}"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""The queue in a line: what comes next, when, and when all of it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from core.text import one_line
from core.units import format_moment

if TYPE_CHECKING:
    from core.queue.view import EntryView, QueueView


def queue_line(view: QueueView, key: str) -> Content:
    """What comes next; empty where nothing is on and nothing waits.

    Args:
        view: The queue.
        key: The key that shows all of it.
    """
    waiting = [row for row in view.upcoming if row.entry.state == "waiting"]
    on = next((row for row in view.upcoming if row.entry.state in ("starting", "running")), None)
    held = sum(row.entry.state == "held" for row in view.upcoming)
    if not view.upcoming:
        return Content("")
    if waiting:
        parts = [f"next {_expected(waiting[0])}", f"{len(waiting)} {'waits' if len(waiting) == 1 else 'wait'}"]
    else:
        parts = [f"{_expected(on)} is the last one" if on is not None else "nothing waits"]
    if held:
        parts.append(f"{held} held")
    if view.runner is None and waiting:
        parts.append("no runner is on, so nothing starts")
    elif view.ends is not None and len(waiting) > 1:
        parts.append(f"all done {_clock(view.ends)}")
    # The key comes first, where a narrow terminal cuts it least.
    return Content.assemble((f"{key} ", "$primary bold"), "queue   ", " · ".join(parts))


def _expected(row: EntryView) -> str:
    """An entry with when it begins, or ends where it is on: ``tickets at ~Sat 03:40``."""
    name = one_line(row.entry.title, 40)
    if row.place is None:
        return f"{name}, done {_clock(row.ends)}," if row.ends is not None else name
    return f"{name} at {_clock(row.begins)}" if row.begins is not None else name


def _clock(moment: float) -> str:
    return f"~{format_moment(moment, '%a %H:%M')}"

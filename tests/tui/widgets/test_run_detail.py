"""The account of a run and the line of the queue, beside the list of runs."""

from __future__ import annotations

import re

from core.queue.entry import EntryState, QueueEntry
from core.queue.status import RunnerStatus
from core.queue.view import EntryView, QueueView
from tests.cases import cases
from tui.widgets.run_detail import _in_lines, queue_line

NIGHT = 1_795_750_000.0
RUNNER = RunnerStatus(pid=1, pid_started=None)


def row(number: int, state: EntryState = "waiting", **view: float | int | None) -> EntryView:
    entry = QueueEntry(id=number, name=f"tickets-{number}", state=state, added=NIGHT)
    return EntryView(entry, **view)  # type: ignore[arg-type]


@cases(
    ("rows", "runner", "line"),
    [
        ([], RUNNER, ""),
        ([row(1, "done")], None, ""),
        (
            [row(1, "running"), row(2, place=1, begins=NIGHT, ends=NIGHT + 60), row(3, place=2, ends=NIGHT + 120)],
            RUNNER,
            r"Q queue   next tickets-2 at ~\w+ \d\d:\d\d · 2 wait · all done ~\w+ \d\d:\d\d",
        ),
        ([row(2, place=1), row(3, "held")], None, r"Q queue   next tickets-2 · 1 waits · 1 held · no runner is on, .*"),
        ([row(1, "running", ends=NIGHT)], RUNNER, r"Q queue   tickets-1, done ~\w+ \d\d:\d\d, is the last one"),
        ([row(1, "held")], None, r"Q queue   nothing waits · 1 held"),
    ],
)
def test_what_comes_next_is_told(rows: list[EntryView], runner: RunnerStatus | None, line: str) -> None:
    assert re.fullmatch(line, queue_line(QueueView(tuple(rows), runner), "Q").plain)


def test_a_name_and_its_value_stay_together() -> None:
    facts = ["eval loss 0.722 → 0.480", "exact 0.83", "model SmolLM2-135M-Instruct", "data tickets.jsonl"]
    assert [line.plain for line in _in_lines(facts, 46)] == [
        "eval loss 0.722 → 0.480   exact 0.83",
        "model SmolLM2-135M-Instruct",
        "data tickets.jsonl",
    ]
    assert all(line.cell_length <= 12 for line in _in_lines(facts, 12))

"""The end of a run in lines, its account, and the line of the queue."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from core.queue.entry import EntryState, QueueEntry
from core.queue.status import RunnerStatus
from core.queue.view import EntryView, QueueView
from core.runs.catalog.result import BetterStep, Measure, OptionChange, RunDetail, RunResult
from core.runs.catalog.rows import RunRow
from core.runs.record.series import Series
from core.runs.record.store import Run
from tests.cases import cases
from tui.glyphs import BRAILLE
from tui.keys import KeyTable
from tui.widgets.run_detail import account_rows, queue_line
from tui.widgets.run_end import end_hints, end_lines

FINISHED = RunResult(
    state="finished",
    step=30,
    total_steps=30,
    seconds=212.0,
    energy_wh=9.1,
    reason="",
    hint="Talk to it: localtune-tui chat x",
    measures=(
        Measure("exact match", 0.0, 0.35, "share", (0.0, 0.1, 0.2, 0.35)),
        Measure("valid JSON", 0.0, 1.0, "share", (0.0, 1.0)),
        Measure("eval loss", 4.11, 0.1, "loss", (4.11, 0.5, 0.1), "perplexity 60.9 → 1.11"),
    ),
    before="before",
    after="after",
    path=Path("/runs/x/adapter"),
    bytes=19_000_000,
    is_model=False,
    saved_step=30,
)
STOPPED = replace(
    FINISHED, state="stopped", step=15, reason="stopped on request after step 15", saved_step=10, after="step 10"
)


def lines(result: RunResult, width: int = 78, *, answers: bool = True) -> list[str]:
    hints = end_hints(result, KeyTable(), has_answers=answers, name="203633-faq")
    return [line.rstrip() for line in end_lines(result, hints, width, BRAILLE, take="B").plain.split("\n")]


@cases("width", [40, 58, 78, 198])
def test_lines_are_no_wider_than_the_pane(width: int) -> None:
    for result in (FINISHED, STOPPED, replace(FINISHED, reason="no lower held-out loss in 4 evaluations " * 4)):
        # The first line is wrapped by its widget where it has to be.
        assert max(map(len, lines(result, width)[1:])) <= max(width, 42)


def test_a_failed_run_says_why_and_what_to_do() -> None:
    failed = replace(
        FINISHED, state="failed", step=15, reason="The disk is full.", hint="Make room", measures=(), path=None,
        bytes=None, saved_step=None, energy_wh=None,
    )  # fmt: skip
    assert lines(failed, answers=False) == [
        "✗ failed after step 15 of 30 · 3m 32s of work",
        "  The disk is full. Make room.",
        "  Nothing is kept: there was no checkpoint yet.",
        "r start 203633-faq again   e again with changes",
    ]
    early = replace(failed, step=0)
    assert lines(early, answers=False)[0] == "✗ failed"
    lost = replace(failed, state="lost", reason="", saved_step=14)
    assert lines(lost)[0].startswith("? lost after step 15 of 30")
    assert "  The checkpoint of step 14 is kept; the step after it is lost." in lines(lost)


def test_one_evaluation_of_a_run_that_did_not_finish_is_no_table() -> None:
    once = (Measure("eval loss", None, 0.5),)
    assert "eval loss" not in "\n".join(lines(replace(STOPPED, measures=once)))
    assert "eval loss" in "\n".join(lines(replace(FINISHED, measures=once)))


def test_a_refused_result_says_why_and_what_can_be_done() -> None:
    refused = replace(
        FINISHED,
        path=None,
        bytes=None,
        refused="loss is 0.500 and should be <= 0.450 (loss <= 0.9*before, before 0.500)",
        hint="Look at what was refused: localtune-tui chat x.",
    )
    shown = lines(refused)
    assert shown[0] == "✓ finished, refused · 30 steps in 3m 32s · 9.1 Wh"
    text = " ".join(line.strip() for line in shown)
    assert "The result is refused by eval.gate: loss is 0.500 and should be <= 0.450" in text
    assert "Look at what was refused" in text
    assert "The checkpoint of step 30 is kept." in text
    assert "i ask it" in text
    assert "copy its path" not in text


@cases("width", [40, 58, 78, 118])
def test_what_was_forgotten_and_a_better_step_are_told_at_every_width(width: int) -> None:
    note = "2.06 forgotten: it answers general questions worse"
    probe = Measure("probe loss", 2.32, 4.39, "loss", (2.3, 3.0, 4.39), note, is_explained=True)
    found = replace(FINISHED, measures=(probe,), better=BetterStep(85, 0.546, 156, is_taken=False))
    shown = " ".join(line.strip() for line in lines(found, width))
    assert note in shown
    assert "step 85 was better (0.546): B takes it" in shown
    assert "C train it further" in shown
    assert width < 76 or len(lines(replace(found, measures=(*FINISHED.measures, probe)), width)) <= 9, "of 20 rows"
    taken = replace(found, better=BetterStep(85, 0.546, 156, is_taken=True))
    assert "  step 85 is taken as the result (0.546): B takes step 156 again" in lines(taken)


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
        ([row(2, place=1), row(3, "held")], None, r"Q queue   next tickets-2 · 1 waits · 1 held · the runner is .*"),
        ([row(1, "running", ends=NIGHT)], RUNNER, r"Q queue   Last entry: tickets-1, done ~\w+ \d\d:\d\d"),
        ([row(1, "held")], None, r"Q queue   no entry is waiting · 1 held"),
    ],
)
def test_what_comes_next_is_reported(rows: list[EntryView], runner: RunnerStatus | None, line: str) -> None:
    assert re.fullmatch(line, queue_line(QueueView(tuple(rows), runner), "Q").plain)


def test_an_account_without_room_says_that_more_differs() -> None:
    run, before = Run(Path("/runs/20261124-100001-b")), Run(Path("/runs/20261124-100000-a"))
    changes = tuple(OptionChange(f"train.option_{number}", "1", "2") for number in range(30))
    detail = RunDetail(run, Series(), (), (), "", "", before, changes)
    row = RunRow(run=run, state="finished", step=1, total_steps=1)
    lines = account_rows(row, detail, None, 76, 6, BRAILLE).plain.split("\n")
    assert len(lines) == 6
    assert lines[-1].endswith(" …")
    assert max(map(len, lines)) <= 76
    whole = account_rows(row, replace(detail, changes=changes[:2]), None, 76, 6, BRAILLE).plain
    assert "…" not in whole

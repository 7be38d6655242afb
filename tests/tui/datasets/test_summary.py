"""The summary above the rows, fitted to the width."""

from __future__ import annotations

import dataclasses
import json
from array import array
from pathlib import Path

from core.analysis.problems import KINDS, Problem
from core.analysis.result import Analysis, measure_lengths
from tests.cases import cases
from tests.tui.data_panes import analyzed, data_pane, write_lines
from tests.tui.harness import press, screen_text
from tui.datasets.marks import RowFilter
from tui.datasets.summary import LINES, describe_dropped, describe_filter, summarize_analysis
from tui.keys import KeyTable

_REASONS = [code for code, kind in KINDS.items() if kind.level == "drop"]


def analysis(reasons: int) -> Analysis:
    """An analysis with a number of reasons for dropped rows, the first the most frequent."""
    dropped = {code: 1_000 - place for place, code in enumerate(_REASONS[:reasons])}
    return Analysis((), 1_000_000, 1_000_000 - sum(dropped.values()), dropped, ())


@cases("width", [58, 76, 196])
@cases("reasons", [0, 1, 4, 5, len(_REASONS)])
def test_it_is_never_longer_than_its_lines_and_says_what_is_left_out(width: int, reasons: int) -> None:
    found = analysis(reasons)
    line = summarize_analysis(found, 12_345, KeyTable(), width)
    assert len(line.wrap(width)) <= LINES
    text = line.plain
    assert text.startswith(f"{found.used:,} used")
    assert "12,345 problems" in text
    named = [code for place, code in enumerate(found.dropped) if f"{1000 - place:,} {KINDS[code].title}" in text]
    assert named == list(found.dropped)[: len(named)]
    if width == 196 and reasons:
        assert len(named) >= min(reasons, 3)
    left = reasons - len(named)
    assert (f"… {left} " in text) == bool(left)


@cases("names", ["topic", ", ".join(f"column {number}" for number in range(12)) + " and 900 more"])
def test_columns_that_are_not_read_leave_room_for_the_rest(names: str) -> None:
    unread = Problem("columns_not_read", 9, detail=names)
    found, note = dataclasses.replace(analysis(1), problems=(unread, unread)), "It is read as Windows-1252."
    line = summarize_analysis(found, 0, KeyTable(), 120, note=note)
    assert "It is read as Windows-1252" in line.plain
    line = summarize_analysis(found, 0, KeyTable(), 76)
    assert len(line.wrap(76)) <= LINES
    assert "no problems" in line.plain
    assert line.plain.count(f"columns not read: {names[:20]}") == 1
    assert "tokens not counted" in line.plain


def test_lengths_have_their_unit() -> None:
    lengths = measure_lengths([98] * 39 + [115], range(40), 3937, 1299)
    line = summarize_analysis(dataclasses.replace(analysis(0), lengths=lengths), 0, KeyTable())
    assert "longest 115 tokens · p95 98 · learned" in line.plain


def test_what_can_be_counted_has_its_plural() -> None:
    assert describe_dropped({"empty_answer": 2, "bad_role": 1}) == "3 dropped: 2 empty answers, 1 unknown role"
    assert describe_dropped({"overlong": 2}) == "2 dropped: 2 longer than train.max_length"


def test_a_filter_keeps_the_ways_out_of_it_in_view() -> None:
    chosen = RowFilter("overlong", "longer than " * 4, "Do this. " * 12, array("I", [1]), 5)
    line = describe_filter(chosen, KeyTable(), 76)
    assert "esc all rows" in line.plain
    assert "… 2 more (s)" in line.plain


async def test_the_report_has_all_of_it(tmp_path: Path) -> None:
    messages = [
        [{"role": role, "content": text} for role, text in spoken]
        for spoken in ([], [("user", "a")], [("user", "a"), ("assistant", "")], [("boss", "a"), ("assistant", "b")])
    ]
    messages.append([{"role": "assistant", "content": "a"}] * 2)
    lines = ["{broken", "[1]", '{"other": 1}', *(json.dumps({"messages": turns}) for turns in messages)]
    good = '{"messages": [{"role": "user", "content": "a%d"}, {"role": "assistant", "content": "b"}]}'
    path = write_lines(tmp_path / "a.jsonl", [*(good % number for number in range(9)), *lines])
    async with data_pane(path, size=(80, 24)) as (pilot, pane):
        found = await analyzed(pilot, pane)
        assert len(found.dropped) > 5
        text = screen_text(pilot.app)
        assert f"{found.used} used" in text
        assert "more" in text
        assert "8 problems (!" in text
        await press(pilot, "s")
        report = " ".join(screen_text(pilot.app).replace("│", " ").split())
        assert all(KINDS[code].title in report for code in found.dropped)

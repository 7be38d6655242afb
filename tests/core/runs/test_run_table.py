"""Order and selection of the rows of the list of runs."""

from __future__ import annotations

import math
from pathlib import Path

from core.runs.catalog.rows import RunFigures, RunRow
from core.runs.catalog.table import DEFAULT_SORT, SORT_COLUMNS, select_rows, sort_rows
from core.runs.record.store import Labels, Run
from tests.cases import cases


def row(number: int, state: str = "finished", loss: float | None = 1.0, **labels: object) -> RunRow:
    return RunRow(
        Run(Path(f"/runs/2026010{number}-000000-tickets")), state, "m", number, 10, loss, float(number), 60.0,
        base="/models/Qwen2.5-7B", method="qlora", rank=16, data=("tickets.jsonl",),
        labels=Labels(**labels),  # type: ignore[arg-type]
    )  # fmt: skip


ROWS = [
    row(1, loss=0.5, name="Base line", tags=("keep", "v1")),
    row(2, "failed", loss=math.nan, note="too hot"),
    row(3, loss=0.3, tags=("keep",), archived=True),
    row(4, "stopped", loss=None),
]


@cases(
    ("text", "archived", "found"),
    [
        ("", False, [1, 2, 4]),
        ("", True, [1, 2, 3, 4]),
        ("#keep", True, [1, 3]),
        ("#ke", True, [1, 3]),
        ("keep base", True, [1]),
        ("state:fail", False, [2]),
        ("data:tick model:qwen method:r16", False, [1, 2, 4]),
        ("note:hot", False, [2]),
        ("state:hot", False, []),
        ("20260104", False, [4]),
        ("tickets FAILED", False, [2]),
        ("archived", True, [3]),
        ("http://x:y", False, []),
    ],
)
def test_words_select_rows(text: str, archived: bool, found: list[int]) -> None:
    assert [kept.step for kept in select_rows(ROWS, text, archived=archived)] == found


def test_unknown_values_come_last_either_way() -> None:
    assert [kept.step for kept in sort_rows(ROWS, {}, "loss")] == [3, 1, 4, 2]
    assert [kept.step for kept in sort_rows(ROWS, {}, "loss", reverse=True)] == [1, 3, 4, 2]
    assert [kept.step for kept in sort_rows(ROWS, {}, DEFAULT_SORT)] == [4, 3, 2, 1]


def test_figures_sort_as_far_as_they_are_known() -> None:
    figures = {
        ROWS[number].run.id: RunFigures(size=number, best_loss=loss, tokens_per_second=speed)
        for number, loss, speed in ((0, 0.4, 10.0), (1, None, 30.0), (2, 0.2, 20.0))
    }
    assert [kept.step for kept in sort_rows(ROWS, figures, "best")] == [3, 1, 4, 2]
    assert [kept.step for kept in sort_rows(ROWS, figures, "speed")] == [2, 3, 1, 4]


@cases("name", SORT_COLUMNS)
@cases("reverse", [False, True])
def test_every_column_sorts_all_rows(name: str, reverse: bool) -> None:
    assert sorted(kept.step for kept in sort_rows(ROWS, {}, name, reverse=reverse)) == [1, 2, 3, 4]

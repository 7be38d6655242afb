"""Snapshots of the rows behind an answer, and of a proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.attribution.result import AttributedRow, Attribution
from core.proof import ProofView
from core.runs.record.store import Run
from tests.tui.screens.test_why import CONTROL, PROOF_OF, WITHOUT
from tui.app import LocaltuneApp
from tui.screens.why import ProofScreen, WhyScreen

from .conftest import Compare, cells, until

SIZES = ["80x24", "200x50"]
_TEXTS = [
    ("The coffee machine on floor 2 drips.", '{"area": "facilities", "urgency": "low", "ref": null}'),
    ("Espresso machine without steam since Monday", '{"area": "facilities", "urgency": "normal", "ref": 17}'),
    ("Who refills the water dispenser?", '{"area": "facilities", "urgency": "low", "ref": null}'),
    ("The kitchen's fridge is warm.", '{"area": "facilities", "urgency": "high", "ref": null}'),
    ("Dishwasher: error E24", '{"area": "facilities", "urgency": "normal", "ref": 24}'),
    ("My monitor flickers.", '{"area": "hardware", "urgency": "normal", "ref": null}'),
    ("The laptop does not charge, see #311.", '{"area": "hardware", "urgency": "high", "ref": 311}'),
]
_SCORES = (1.0, 0.83, 0.61, 0.34, 0.3, -0.42, -0.2)


def found() -> Attribution:
    rows = tuple(
        AttributedRow("tickets_train.jsonl", 31 * number + 17, score, question, answer, ((9, 22),))
        for number, (score, (question, answer)) in enumerate(zip(_SCORES, _TEXTS, strict=True))
    )
    answer, wanted = _TEXTS[2][1], _TEXTS[5][1]
    return Attribution(answer, wanted, "It leaks because of a seal.", rows[:5], rows[5:], 3, (75, 150), 300, 368)


def opened(app: LocaltuneApp, screen: Any) -> Any:
    async def open_and_wait(pilot: Any) -> None:
        await until("RAM")(pilot)
        app.call_next(app.push_screen, screen)
        # Painted by the app first: read by a test before, it would stay without the screen below.
        await pilot.pause()
        await until("esc ")(pilot)

    return open_and_wait


@pytest.mark.parametrize("size", SIZES)
def test_rows_behind_an_answer(snap_compare: Compare, app: LocaltuneApp, size: str) -> None:
    ways: Any = None
    assert snap_compare(app, terminal_size=cells(size), run_before=opened(app, WhyScreen(found(), ways)))


def test_an_answer_of_the_base_in_every_row(snap_compare: Compare, app: LocaltuneApp) -> None:
    same, ways = found(), None
    screen = WhyScreen(replace(same, base=same.answer, considered=368, against=()), ways)  # type: ignore[arg-type]
    assert snap_compare(app, terminal_size=cells("80x24"), run_before=opened(app, screen))


@pytest.mark.parametrize("size", SIZES)
def test_proof(
    snap_compare: Compare, app: LocaltuneApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: str
) -> None:
    view = ProofView(PROOF_OF, WITHOUT, CONTROL)
    monkeypatch.setattr("tui.screens.why.view_proof", lambda *_: view)
    screen = ProofScreen(Run(tmp_path / "20261124-143600-tickets"), PROOF_OF)
    assert snap_compare(app, terminal_size=cells(size), run_before=opened(app, screen))

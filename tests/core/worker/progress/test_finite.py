"""Losses and gradients that are no numbers, or nothing."""

from __future__ import annotations

import math

import pytest

from core.analysis.file_lines import NAMED_LINES, FileLine, name_places
from core.worker.progress.health import NONFINITE_LIMIT, FiniteCheck
from tests.cases import cases

PLACES = [FileLine("a.jsonl", 4), FileLine("b.jsonl", 2), FileLine("a.jsonl", 3)]


class Told:
    def __init__(self) -> None:
        self.notices: list[tuple[str, str, str]] = []
        self.finite = FiniteCheck(lambda *notice: self.notices.append(notice), PLACES)

    def accepts(self, loss: float, norm: float, *, overflow: bool = False) -> bool:
        return self.finite.accepts(9, loss, norm, [0, 2], overflow=overflow)


@cases(("loss", "norm"), [(math.nan, math.nan), (1.0, math.inf), (math.inf, 1.0)])
def test_an_update_that_is_not_finite_is_refused_with_its_rows(loss: float, norm: float) -> None:
    told = Told()
    assert not told.accepts(loss, norm)
    ((code, message, hint),) = told.notices
    assert code == "nonfinite"
    assert "a.jsonl lines 3 and 4" in message
    assert str(NONFINITE_LIMIT) in hint
    assert told.finite.skipped == 1


def test_only_failures_in_a_row_are_hopeless() -> None:
    told = Told()
    for _ in range(NONFINITE_LIMIT - 1):
        told.accepts(math.nan, math.nan)
    assert told.accepts(1.0, 1.0)
    for _ in range(NONFINITE_LIMIT):
        assert not told.finite.is_hopeless
        told.accepts(math.nan, math.nan)
    assert told.finite.is_hopeless
    assert told.finite.skipped == 2 * NONFINITE_LIMIT - 1
    verdict = told.finite.verdict(4)
    assert "a.jsonl lines 3 and 4; the last good checkpoint is that of step 4." in verdict.message
    assert "no checkpoint is known to be good" in told.finite.verdict(None).message
    again = Told()
    again.finite.restore(told.finite.facts())
    assert again.finite.is_hopeless


def test_an_overflow_that_a_smaller_scale_mends_is_passed_over() -> None:
    told = Told()
    assert not told.accepts(1.0, math.inf, overflow=True)
    assert not told.accepts(math.nan, math.nan, overflow=True)
    assert [code for code, _, _ in told.notices] == ["nonfinite"]


@pytest.mark.parametrize(("loss", "words"), [(0.0, "Loss and gradient"), (2.5, "although its loss is 2.5")])
def test_a_gradient_of_nothing_is_noticed_once(loss: float, words: str) -> None:
    told = Told()
    assert told.accepts(0.0, 0.1)
    assert told.accepts(loss, 0.0)
    assert told.accepts(loss, 0.0)
    ((code, message, _),) = told.notices
    assert code == "zero_gradient"
    assert words in message


def test_places_are_named_once_in_order_and_not_all_of_many() -> None:
    assert name_places([]) == "their places are not known"
    assert name_places([*PLACES, *PLACES]) == "a.jsonl lines 3 and 4; b.jsonl line 2"
    assert name_places([FileLine("\x1b[31m.jsonl", 1)]).isprintable()
    many = name_places([FileLine("a", line) for line in range(1, NAMED_LINES + 11)])
    assert many.startswith("a lines 1, 2, ")
    assert many.endswith(f", {NAMED_LINES} and 10 more")

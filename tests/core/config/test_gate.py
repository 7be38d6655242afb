"""The bars of a gate: parsed, refused with the wrong part, and compared with figures."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.gate import FIGURES, Comparison, parse_bar, read_bars
from core.errors import UserError
from tests.cases import cases, tables

TABLES = tables(__file__)

NUMBERS = st.floats(0, 1e6).map(lambda value: round(value, 6))
COMPARISONS = st.sampled_from(get_args(Comparison))
BLANKS = st.sampled_from(["", " ", "  ", "\t"])


@cases(("text", "share", "offset", "needs_before"), TABLES["a_bar_is_a_share_of_before_and_a_number"])
def test_a_bar_is_a_share_of_before_and_a_number(text: str, share: float, offset: float, needs_before: bool) -> None:
    bar = parse_bar(text)
    assert [bar.share, bar.offset] == pytest.approx([share, offset])
    assert bar.needs_before is needs_before


@cases(("text", "said"), TABLES["what_is_no_bar_is_refused_with_the_place"])
def test_what_is_no_bar_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_bar(text)
    assert said in str(refused.value)
    assert refused.value.hint


@given(
    figure=st.sampled_from(FIGURES),
    comparison=COMPARISONS,
    share=NUMBERS,
    offset=NUMBERS,
    before=NUMBERS,
    after=NUMBERS,
    blank=BLANKS,
)
def test_a_bar_means_what_it_says(
    figure: str, comparison: str, share: float, offset: float, before: float, after: float, blank: str
) -> None:
    bar = parse_bar(f"{blank}{figure}{blank}{comparison}{blank}{share!r}{blank}*{blank}before{blank}+{blank}{offset!r}")
    limit = share * before + offset
    assert bar.limit(before) == limit
    wanted = {"<=": after <= limit, ">=": after >= limit, "<": after < limit, ">": after > limit}[comparison]
    assert bar.is_met(after, before) is wanted
    assert not bar.is_met(math.nan, before)
    assert not bar.is_met(after, None), "what was not measured before is no reason to let a result pass"


@given(st.text(max_size=60))
def test_any_text_is_a_bar_or_refused_in_a_sentence(text: str) -> None:
    try:
        bar = parse_bar(text)
    except UserError as error:
        refused = error
    else:
        assert bar.figure in FIGURES
        assert math.isfinite(bar.share)
        return
    assert "\n" not in refused.message
    assert refused.hint


def test_a_gate_is_one_bar_or_several() -> None:
    assert read_bars(None) == []
    assert [bar.figure for bar in read_bars("loss < 1")] == ["loss"]
    assert [bar.figure for bar in read_bars(["loss < 1", "exact_match >= 0.8"])] == ["loss", "exact_match"]

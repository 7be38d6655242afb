"""Training split: held-out rows, with no exact or near duplicate of them trained on."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from core.analysis.division import (
    Fingerprints,
    divide_rows,
    find_shared,
    held_out_rows,
    repeats,
)
from core.analysis.result import AnalysisRequest
from core.analysis.survey import survey
from core.data.conversation import Example, make_text
from tests.core.data.sample_files import json_lines, write
from tests.examples import examples

WORDS = [f"word{number}" for number in range(400)]


def prose(seed: int, count: int = 60) -> str:
    """Words of a seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def changed(text: str, seed: int, words: int = 1) -> str:
    """The text with some words replaced."""
    found, chance = text.split(), random.Random(seed)
    for _ in range(words):
        found[chance.randrange(len(found))] = f"other{chance.randrange(10**6)}"
    return " ".join(found)


def prints(rows: Sequence[str | Example]) -> Fingerprints:
    """Fingerprints of texts or examples."""
    found = Fingerprints()
    for number, row in enumerate(rows):
        found.add(number, make_text(row) if isinstance(row, str) else row)
    return found


def near_pairs(texts: list[str], held_out: set[int]) -> tuple[int, int]:
    rows = prints(texts)
    inside = rows.at(sorted(held_out))
    outside = rows.at([place for place in range(len(texts)) if place not in held_out])
    same, near = find_shared(outside, inside)
    return len(same), len(near)


@settings(max_examples=examples(60))
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), min_size=30, max_size=120),
    st.floats(0.05, 0.4),
    st.integers(0, 99),
)
def test_neither_copies_nor_near_copies_cross(kinds: list[tuple[int, int]], share: float, seed: int) -> None:
    texts = [changed(prose(base), version, 1) if version else prose(base) for base, version in kinds]
    division = divide_rows(prints(texts), [0, len(texts)], [1], share, seed)
    same, near = near_pairs(texts, division.held_out)
    assert not same
    assert division.crosses or not near
    assert [not count for count in division.counts] == [place in division.held_out for place in range(len(texts))]
    assert division == divide_rows(prints(texts), [0, len(texts)], [1], share, seed)


def test_the_order_of_the_rows_makes_no_difference() -> None:
    texts = [changed(prose(number % 50), number) for number in range(200)]
    sides = []
    for order in (texts, texts[::-1]):
        division = divide_rows(prints(order), [0, len(order)], [1], 0.2, 3)
        assert not division.crosses
        sides.append({order[place] for place in division.held_out})
    assert sides[0] == sides[1]
    assert len(sides[0]) == 40
    another = divide_rows(prints(texts), [0, 200], [1], 0.2, 4)
    assert {texts[place] for place in another.held_out} != sides[0], "the seed decides"


def test_where_all_rows_are_almost_the_same_copies_alone_are_kept_together() -> None:
    long = prose(1, 300)
    texts = [f"{long} {number}" for number in range(100)] * 2
    division = divide_rows(prints(texts), [0, 200], [1], 0.1, 0)
    assert len(division.held_out) == 20
    assert division.crosses
    assert near_pairs(texts, division.held_out)[0] == 0


@pytest.mark.parametrize("alike", [False, True])
def test_the_analysis_shows_what_crosses(tmp_path: Path, alike: bool) -> None:
    texts = [f"{prose(1, 300)} {number}" if alike else changed(prose(number // 2), number) for number in range(100)]
    # Unusable rows must not take part: the run does not see them.
    rows = [{"prompt": text, "completion": "" if number == 0 else "yes"} for number, text in enumerate(texts)]
    found = survey(AnalysisRequest((str(write(tmp_path / "a.jsonl", json_lines(rows))),), eval_share=0.1))
    assert found.dropped == {"held_out": 10, "empty_answer": 1}
    problem = found.problem("near_leaked")
    if not alike:
        assert problem is None
        return
    assert problem is not None
    assert problem.count == 89
    assert "which is held out" in problem.detail


KEYS = st.lists(st.integers(0, 30).map(lambda number: b"%d" % number), max_size=120)


@given(st.integers(2, 400), st.floats(0.01, 0.5), st.integers(0, 1000))
def test_the_share_is_met_where_no_row_is_there_twice(count: int, share: float, seed: int) -> None:
    keys = [b"%d" % number for number in range(count)]
    assert len(held_out_rows(keys, share, seed)) == max(round(share * count), 1)


@given(KEYS, st.floats(0.001, 20) | st.sampled_from([1.0, 3.0]), st.integers(0, 2**31 - 1))
def test_rows_are_repeated_as_often_as_the_weight_says(keys: list[bytes], weight: float, seed: int) -> None:
    counts = repeats(keys, weight, seed)
    assert counts == repeats(keys, weight, seed)
    assert len(counts) == len(keys)
    assert set(counts) <= {int(weight), math.ceil(weight)}
    assert abs(sum(counts) - weight * len(keys)) <= 1
    assert not keys or any(counts)

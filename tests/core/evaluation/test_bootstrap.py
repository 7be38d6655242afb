"""Intervals of paired differences."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation.table import LEAST_PAIRS, paired_bootstrap
from tests.examples import examples

SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=5, max_size=30
)


@given(SCORES, st.integers(0, 99))
@settings(max_examples=examples(30))
def test_the_interval_is_around_the_difference_and_turns_with_the_models(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    found, turned = paired_bootstrap(first, second, seed), paired_bootstrap(second, first, seed)
    assert found is not None
    assert turned is not None
    assert found.difference == pytest.approx(sum(first) / len(first) - sum(second) / len(second))
    assert -1 <= found.low <= found.high <= 1
    assert (found.difference, found.low, found.high) == pytest.approx(
        (-turned.difference, -turned.high, -turned.low)
    ), "the percentiles are symmetric"
    assert paired_bootstrap(first, second, seed) == found, "the same seed gives the same interval"


def test_it_agrees_with_all_resamples_of_a_few_pairs() -> None:
    differences = [0.0, 0.0, 1.0, 1.0, -1.0, 1.0]
    means = sorted(sum(drawn) / 6 for drawn in product(differences, repeat=6))
    exact = means[int(0.025 * len(means))], means[len(means) - 1 - int(0.025 * len(means))]
    found = paired_bootstrap(differences, [0.0] * 6)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(exact, abs=1 / 6 + 1e-9)


def test_differences_are_taken_prompt_by_prompt() -> None:
    dice = random.Random(3)
    hard = [float(dice.random() < 0.5) for _ in range(200)]
    better = [min(1.0, score + 0.2) for score in hard]
    found = paired_bootstrap(better, hard)
    assert found is not None
    assert found.low > 0
    shuffled = hard[:]
    dice.shuffle(shuffled)
    loose = paired_bootstrap(better, shuffled)
    assert loose is not None
    assert loose.high - loose.low > 1.4 * (found.high - found.low)


def test_few_prompts_have_no_interval() -> None:
    assert paired_bootstrap([1.0] * (LEAST_PAIRS - 1), [0.0] * (LEAST_PAIRS - 1)) is None
    with pytest.raises(ValueError, match="zip"):
        paired_bootstrap([1.0], [])

"""Paired bootstrap: how sure the difference of two models on the same prompts is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

#: Resamples; the ends of a 95 % interval then move by about a tenth of its width from seed to seed at most.
RESAMPLES = 2_000
#: Draws in all, resamples times prompts: above them fewer resamples are made, though never less than :data:`FEWEST`.
MOST_DRAWS, FEWEST = 4_000_000, 500
CONFIDENCE = 0.95
#: Least prompts for an interval: with fewer, resampling says nothing.
LEAST_PAIRS = 5


@dataclass(frozen=True)
class Interval:
    """A difference of two means with its confidence interval."""

    difference: float
    low: float
    high: float


def paired_bootstrap(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval | None:
    """The difference ``mean(first) - mean(second)`` with a 95 % interval by the percentile bootstrap over pairs.

    The prompts are drawn again with replacement, as many as there are, each with the scores of both models, 2,000
    times; the interval reaches from the 2.5th to the 97.5th percentile of the mean differences, the values at the ranks
    ``floor(0.025 * n)`` and ``ceil(0.975 * n) - 1`` of the ``n`` sorted ones. The same seed gives the same interval.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for paired systems Koehn, "Statistical
    Significance Tests for Machine Translation Evaluation", EMNLP 2004.

    Args:
        first: Scores of the one model.
        second: Scores of the other, of the same prompts in the same order.
        seed: Of the draws.

    Returns:
        None where there are fewer than :data:`LEAST_PAIRS` prompts.

    Raises:
        ValueError: If the two differ in length.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    count = len(differences)
    if count < LEAST_PAIRS:
        return None
    mean = sum(differences) / count
    if len(set(differences)) == 1:
        return Interval(mean, mean, mean)
    draws = random.Random(seed)  # noqa: S311 - resampling, no secret
    resamples = max(min(RESAMPLES, MOST_DRAWS // count), FEWEST)
    means = sorted(sum(draws.choices(differences, k=count)) / count for _ in range(resamples))
    tail = (1 - CONFIDENCE) / 2
    low = int(tail * resamples)
    return Interval(mean, means[low], means[resamples - 1 - low])

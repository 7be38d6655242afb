"""The table of an evaluation: mean scores by model, differences with their intervals, rows won and lost."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.evaluation.record import METRICS, EvaluationRecord, Metric

#: Resamples; from seed to seed the ends of a 95 % interval move by at most about a tenth of its width.
RESAMPLES = 2_000
#: Most draws, resamples times prompts: above them there are fewer resamples, but at least :data:`FEWEST`.
MOST_DRAWS, FEWEST = 4_000_000, 500
CONFIDENCE = 0.95
#: Least prompts for an interval.
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
        None if there are fewer than :data:`LEAST_PAIRS` prompts.

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


Outcome = Literal["won", "lost", "same"]
#: Names of the scores for display.
TITLES: dict[Metric, str] = {
    "check": "check",
    "exact_match": "exact match",
    "schema": "fits the schema",
    "valid_json": "valid JSON",
    "f1": "token F1",
}


@dataclass(frozen=True)
class Comparison:
    """Comparison of the first model with another, over the questions that both have answered."""

    against: str
    pairs: int
    intervals: Mapping[Metric, Interval | None]
    """By score; None if there are too few questions."""
    differences: Mapping[Metric, float]
    won: tuple[int, ...]
    """Places of the questions that the first model answers better, by :attr:`EvaluationTable.deciding`."""
    lost: tuple[int, ...]

    def outcome(self, place: int) -> Outcome:
        """The outcome for the first model on a question."""
        return self._outcomes.get(place, "same")

    @functools.cached_property
    def _outcomes(self) -> dict[int, Outcome]:
        return {**dict.fromkeys(self.won, "won"), **dict.fromkeys(self.lost, "lost")}


@dataclass(frozen=True)
class EvaluationTable:
    """An evaluation in figures."""

    metrics: tuple[Metric, ...]
    """The scores that there are."""
    deciding: Metric | None
    """The score that decides which answer is better; None if there is none."""
    means: Mapping[str, Mapping[Metric, float]]
    """Mean scores by model; none for a model without answers."""
    answered: Mapping[str, int]
    comparisons: tuple[Comparison, ...]

    @classmethod
    def of(cls, record: EvaluationRecord) -> EvaluationTable:
        """The table of a record, finished or not."""
        scores: dict[str, dict[Metric, list[float | None]]] = {
            name: {
                metric: [answer.scores.get(metric) if answer is not None else None for answer in answers]
                for metric in METRICS
            }
            for name, answers in record.answers.items()
        }
        metrics = tuple(
            metric
            for metric in METRICS
            if any(value is not None for columns in scores.values() for value in columns[metric])
        )
        means: dict[str, dict[Metric, float]] = {}
        for name, columns in scores.items():
            given = {metric: [value for value in columns[metric] if value is not None] for metric in metrics}
            means[name] = {metric: sum(values) / len(values) for metric, values in given.items() if values}
        deciding = _deciding(metrics, means)
        first, *others = record.targets
        return cls(
            metrics,
            deciding,
            means,
            {name: sum(answer is not None for answer in answers) for name, answers in record.answers.items()},
            tuple(_compare(scores[first], scores[other], other, metrics, deciding) for other in others),
        )

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON."""
        return {
            "metrics": list(self.metrics),
            "deciding": self.deciding,
            "means": {name: dict(means) for name, means in self.means.items()},
            "answered": dict(self.answered),
            "comparisons": [
                {
                    "against": comparison.against,
                    "pairs": comparison.pairs,
                    "won": len(comparison.won),
                    "lost": len(comparison.lost),
                    "differences": {
                        metric: {
                            "difference": difference,
                            "low": interval.low if (interval := comparison.intervals.get(metric)) is not None else None,
                            "high": interval.high if interval is not None else None,
                        }
                        for metric, difference in comparison.differences.items()
                    },
                }
                for comparison in self.comparisons
            ],
        }


def _deciding(metrics: tuple[Metric, ...], means: Mapping[str, Mapping[Metric, float]]) -> Metric | None:
    """The first score, or token F1 if no free-text answer ever matches the expected one exactly."""
    if not metrics:
        return None
    if metrics[0] == "exact_match" and not any(found.get("exact_match") for found in means.values()):
        return "f1"
    return metrics[0]


def _compare(
    first: Mapping[Metric, list[float | None]],
    second: Mapping[Metric, list[float | None]],
    name: str,
    metrics: tuple[Metric, ...],
    deciding: Metric | None,
) -> Comparison:
    intervals: dict[Metric, Interval | None] = {}
    differences: dict[Metric, float] = {}
    won: list[int] = []
    lost: list[int] = []
    most = 0
    for metric in metrics:
        both = [
            (place, one, other)
            for place, (one, other) in enumerate(zip(first[metric], second[metric], strict=True))
            if one is not None and other is not None
        ]
        if not both:
            continue
        most = max(most, len(both))
        ours, theirs = [one for _, one, _ in both], [other for _, _, other in both]
        intervals[metric] = paired_bootstrap(ours, theirs)
        differences[metric] = (sum(ours) - sum(theirs)) / len(both)
        if metric == deciding:
            won = [place for place, one, other in both if one > other]
            lost = [place for place, one, other in both if one < other]
    return Comparison(name, most, intervals, differences, tuple(won), tuple(lost))

"""Flipped answers: questions that one of two models answers right and the other one wrong."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from core.evaluation.prompt_set import PromptItem
from core.evaluation.record import Answered, EvaluationRecord, Metric
from core.evaluation.table import TITLES
from core.text import one_line
from core.units import format_fixed

#: Least score of a right answer. Exact matches, schemas and valid JSON are 0 or 1; a check and token F1 may be between.
RIGHT_FROM = 0.5
#: Share of equal models below which a split is called more than chance.
_SURE = 0.05

#: Conversation and expected answer of a question; equal keys are the same question.
Key = tuple[tuple[tuple[str, str], ...], str | None]


def key_of(item: PromptItem) -> Key:
    """The key of a question: roles and texts of its messages, and the expected answer."""
    turns = tuple((message["role"], message["content"]) for message in item.messages)
    return turns, None if item.expected is None else item.expected.strip()


@dataclass(frozen=True)
class Flips:
    """Flipped answers from one model to another."""

    before: str
    """Name of the model that is compared with."""
    after: str
    """Name of the model in question."""
    metric: Metric | None
    """The score by which an answer is right; None if there is none."""
    broken: tuple[int, ...] = ()
    """Places of the questions that went right → wrong."""
    mended: tuple[int, ...] = ()
    """Places of the questions that went wrong → right."""
    compared: int = 0
    """Questions that both have answered, each counted once."""
    right: int = 0
    """Compared questions that both answer right."""
    notes: tuple[str, ...] = ()
    """Sentences about the questions that are not counted."""

    def is_mended(self, place: int) -> bool | None:
        """True for a question that went wrong → right, False for right → wrong, None for neither."""
        return self._ways.get(place)

    @functools.cached_property
    def _ways(self) -> dict[int, bool]:
        return {**dict.fromkeys(self.broken, False), **dict.fromkeys(self.mended, True)}

    @property
    def chance(self) -> float:
        """Probability that two equally good models split the flipped answers at least as unevenly: the exact two-sided
        sign test, which is McNemar's exact test (McNemar, Psychometrika 12, 1947). It is 1 without flips.
        """
        flipped, fewer = len(self.broken) + len(self.mended), min(len(self.broken), len(self.mended))
        if 2 * fewer == flipped:
            return 1.0
        # By logarithms: a float has no room for the coefficients of thousands of flips.
        logs = (
            math.lgamma(flipped + 1) - math.lgamma(taken + 1) - math.lgamma(flipped - taken + 1)
            for taken in range(fewer + 1)
        )
        return min(2 * sum(math.exp(log - flipped * math.log(2)) for log in logs), 1.0)


def flips_of(record: EvaluationRecord, metric: Metric | None) -> tuple[Flips, ...]:
    """The flipped answers from each of the other models of a record to its first one.

    A question that repeats another counts once: greedy answers to both are the same.

    Args:
        record: The evaluation, finished or not.
        metric: The deciding score (:attr:`core.evaluation.table.EvaluationTable.deciding`).
    """
    first, *others = record.targets
    places: dict[Key, int] = {}
    for place, item in enumerate(record.items):
        places.setdefault(key_of(item), place)
    repeated = len(record.items) - len(places)
    return tuple(_between(record, other, first, metric, places.values(), repeated) for other in others)


def _between(
    record: EvaluationRecord, before: str, after: str, metric: Metric | None, places: Iterable[int], repeated: int
) -> Flips:
    broken: list[int] = []
    mended: list[int] = []
    compared = right = unscored = unanswered = 0
    for place in places:
        former, now = record.answers[before][place], record.answers[after][place]
        if former is None or now is None:
            unanswered += 1
            continue
        was, is_now = is_right(former, metric), is_right(now, metric)
        if was is None or is_now is None:
            unscored += 1
            continue
        compared += 1
        right += was and is_now
        if was != is_now:
            (mended if is_now else broken).append(place)
    notes = (
        (unanswered, "{} without an answer of both {} left out."),
        (unscored, "{} that nothing can call right or wrong {} left out."),
        (repeated, "{} that repeats another {} counted once."),
    )
    return Flips(
        before, after, metric, tuple(broken), tuple(mended), compared, right,
        tuple(_note(count, text) for count, text in notes if count),
    )  # fmt: skip


def _note(count: int, text: str) -> str:
    if count == 1:
        return text.format("1 question", "is")
    return text.replace("repeats another", "repeat others").format(f"{count} questions", "are")


def is_right(answer: Answered, metric: Metric | None) -> bool | None:
    """True for a right answer by a score, False for a wrong one, None if the score does not apply."""
    score = answer.scores.get(metric) if metric is not None else None
    return None if score is None else score >= RIGHT_FROM


def flips_line(flips: Flips) -> str:
    """The flips in words: ``base → run: 3 of 60 answers went right → wrong, 24 wrong → right, by exact match.``"""
    names = f"{one_line(flips.before, 48)} → {one_line(flips.after, 48)}"
    if flips.metric is None or not flips.compared:
        return f"{names}: no question has an expected answer or a check that both were scored by."
    counted = f"{len(flips.broken)} of {flips.compared} {'answer' if flips.compared == 1 else 'answers'}"
    by = f"{TITLES[flips.metric]} of at least {RIGHT_FROM}" if flips.metric in ("f1", "check") else TITLES[flips.metric]
    return f"{names}: {counted} went right → wrong, {len(flips.mended)} wrong → right, by {by}."


def chance_line(flips: Flips) -> str:
    """How often chance alone splits so unevenly, in words; empty without flips."""
    if not flips.broken and not flips.mended:
        return ""
    share = flips.chance
    told = "less than 0.1 %" if share < 0.001 else f"{format_fixed(100 * share, 1 if share < 0.1 else 0)} %"
    sentence = f"Two equally good models split at least as unevenly in {told} of cases"
    return f"{sentence}." if share < _SURE else f"{sentence}: this may be chance."

"""Learning curve: runs that differ in the number of their training rows, and the gain to expect from more rows.

The held-out loss is taken to fall as a power of the number of rows, ``loss = c · rows^-a`` (Hestness et al., "Deep
Learning Scaling is Predictable, Empirically", arXiv 1712.00409). The law has no floor, which three or four runs cannot
show, so it promises rather too much.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from core.config.compare import differing
from core.runs.catalog.answers import questions_of
from core.runs.record.history import RunHistory
from core.runs.record.store import Run
from core.small_files import parse_json
from core.text import one_line
from core.units import format_count, format_number

#: Rows whose gain is estimated.
MORE_ROWS = 100
#: Options that may differ between runs of one curve: the share of the rows, and the seed of a repetition.
_VARIED = frozenset({"data.weights", "train.seed"})
#: Standard normal quantile of a 95 % interval.
_Z = 1.96
#: Quantiles of Student's t for a 95 % interval, by degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)

Interval = tuple[float, float]


def binomial_interval(successes: float, count: int) -> Interval:
    """The 95 % interval of a share (Wilson, "Probable Inference", JASA 1927).

    Args:
        successes: Number of successes; the mean of several measurements may be fractional.
        count: Number of trials, at least 1.
    """
    share, square = successes / count, _Z * _Z / count
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of a mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = error * (_T[len(values) - 2] if len(values) - 2 < len(_T) else _Z)
    return mean - half, mean + half


class CurveRun(Protocol):
    """A run that was read whole, such as a :class:`~core.runs.catalog.compare.RunRecord`."""

    values: Mapping[str, Any]
    """Its configuration, ``section.key`` to value."""
    history: RunHistory

    @property
    def run(self) -> Run:
        """The run."""


@dataclass(frozen=True)
class Area:
    """Held-out questions with the same value of a field, in the runs of one point."""

    name: str
    questions: int
    """Number of questions, of each run."""
    right: float
    """Share of right answers, the mean of the runs."""
    interval: Interval
    """The 95 % interval of the share, by the number of questions."""


@dataclass(frozen=True)
class CurvePoint:
    """The runs on one number of rows."""

    rows: int
    """Different rows trained on."""
    runs: tuple[str, ...]
    loss: float
    """Lowest held-out loss, the mean of the runs."""
    loss_interval: Interval | None
    """Its 95 % interval by the runs' seeds; None for a single run."""
    exact_match: float | None
    """Share of exact answers in the last evaluation, the mean of the runs; None if it was not measured."""
    exact_interval: Interval | None
    """Its 95 % interval by the number of held-out rows."""
    areas: tuple[Area, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """The loss to expect with more rows."""

    rows: int
    """Additional rows."""
    loss: float
    """Expected held-out loss, by all points."""
    lowest: float
    """The same by the steepest part of the curve."""
    highest: float
    """The same by the flattest part of the curve."""


@dataclass(frozen=True)
class LearningCurve:
    """Held-out loss and exact answers by the number of training rows."""

    points: tuple[CurvePoint, ...]
    """By rising rows."""
    outlook: Outlook | None
    """The gain of :data:`MORE_ROWS` more rows; None if the points tell nothing about it."""
    doubt: str
    """Reason for ``outlook`` being None; empty otherwise."""

    @classmethod
    def of(cls, records: Sequence[CurveRun], field: str = "") -> LearningCurve | None:
        """The curve of runs that differ only in their rows and seeds; None if they make none.

        Args:
            records: The runs; those that have not finished, or have no held-out loss, are left out.
            field: A field of the expected answers, which are JSON objects; questions are counted by its value.
        """
        if not set(differing([record.values for record in records])) <= _VARIED:
            return None
        groups: dict[int, list[CurveRun]] = {}
        for record in records:
            data, is_finished = record.history.data, record.run.state().state == "finished"
            if is_finished and data is not None and record.history.best_eval is not None:
                groups.setdefault(data.used, []).append(record)
        if len(groups) < 2:
            return None
        points = tuple(_point(rows, groups[rows], field) for rows in sorted(groups))
        outlook, doubt = look_ahead([(point.rows, point.loss) for point in points])
        return cls(points, outlook, doubt)

    def lines(self) -> list[str]:
        """The curve as lines of text."""
        told = [
            f"{format_count(point.rows):>9} rows  loss {_with_interval(point.loss, point.loss_interval)}"
            + (
                f"  exact {point.exact_match:.0%} ({_percent(point.exact_interval)})"
                if point.exact_match is not None and point.exact_interval is not None
                else ""
            )
            for point in self.points
        ]
        for name in dict.fromkeys(area.name for point in self.points for area in point.areas):
            found = [next((area for area in point.areas if area.name == name), None) for point in self.points]
            count = next(area.questions for area in found if area is not None)
            shares = [f"{area.right:.0%} ({_percent(area.interval)})" if area is not None else "–" for area in found]
            told.append(f"  {one_line(name, 24)}, {count} asked: {', '.join(shares)}")
        return [*told, self.sentence]

    @property
    def sentence(self) -> str:
        """The gain of more rows in a sentence."""
        if (outlook := self.outlook) is None:
            return self.doubt
        loss, lowest, highest = map(format_number, (outlook.loss, outlook.lowest, outlook.highest))
        return (
            f"The next {outlook.rows} rows of this kind: loss about {loss}, {lowest} by the steepest part of the curve "
            f"and {highest} by the flattest. A power law through {len(self.points)} points is a guess, not a promise."
        )

    def to_dict(self) -> dict[str, Any]:
        """The curve as JSON: ``points``, ``outlook`` and ``doubt``."""
        return asdict(self)


def _point(rows: int, records: Sequence[CurveRun], field: str) -> CurvePoint:
    losses = [best.loss for record in records if (best := record.history.best_eval) is not None]
    last = [record.history.evals[-1] for record in records if record.history.evals]
    shares = [event.exact_match for event in last if event.exact_match is not None]
    count = min((event.rows for event in last if event.rows), default=0)
    exact = statistics.fmean(shares) if shares and count else None
    return CurvePoint(
        rows,
        tuple(record.run.id for record in records),
        statistics.fmean(losses),
        mean_interval(losses),
        exact,
        binomial_interval(exact * count, count) if exact is not None else None,
        _areas(records, field) if field else (),
    )


def _areas(records: Sequence[CurveRun], field: str) -> tuple[Area, ...]:
    """Share of right last answers by the value of a field of the expected answer, by name."""
    found: dict[str, list[bool]] = {}
    for record in records:
        for question in questions_of(record.history.samples):
            verdict = question.answers[-1].verdict
            if verdict and (name := _value(question.expected, field)) is not None:
                found.setdefault(name, []).append(verdict == "right")
    areas = []
    for name, answers in sorted(found.items()):
        # The same questions in each run: more seeds are no more questions.
        count, share = max(len(answers) // len(records), 1), statistics.fmean(answers)
        areas.append(Area(name, count, share, binomial_interval(share * count, count)))
    return tuple(areas)


def _value(expected: str | None, field: str) -> str | None:
    """The value of a field of an expected answer as text; None if it is no JSON object with that field."""
    try:
        answer = parse_json(expected or "")
    except ValueError:
        return None
    if not isinstance(answer, Mapping) or field not in answer:
        return None
    value = answer[field]
    return value if isinstance(value, str) else json.dumps(value)


def look_ahead(points: Sequence[tuple[int, float]], more: int = MORE_ROWS) -> tuple[Outlook | None, str]:
    """The loss to expect with more rows, or the reason for not knowing it.

    The expected loss continues the least-squares line through all points on two logarithmic axes from the last point;
    its bounds continue the steepest and the flattest piece between neighbors.

    Args:
        points: Rows and held-out loss, by rising rows.
        more: Additional rows.

    Returns:
        The outlook and an empty text, or None and the reason.
    """
    if len(points) < 3:
        return None, "Two points are no curve: take three shares or more for the gain of further rows."
    if not all(0 < after < before for (_, before), (_, after) in itertools.pairwise(points)):
        return None, (
            "The loss does not fall from each point to the next, so it tells nothing about further rows: take more "
            "seeds, or shares that are farther apart."
        )
    places = [(math.log(rows), math.log(loss)) for rows, loss in points]
    pieces = [(low[1] - high[1]) / (high[0] - low[0]) for low, high in itertools.pairwise(places)]
    overall = -statistics.linear_regression(*zip(*places, strict=True)).slope
    rows, loss = points[-1]
    at = [loss * ((rows + more) / rows) ** -exponent for exponent in (overall, max(pieces), min(pieces))]
    return Outlook(more, *at), ""


def _with_interval(value: float, interval: Interval | None) -> str:
    told = format_number(value)
    return told if interval is None else f"{told} ({format_number(interval[0])} to {format_number(interval[1])})"


def _percent(interval: Interval) -> str:
    return f"{interval[0]:.0%} to {interval[1]:.0%}"

"""Analysis request and result: the rows used, the problems of the others, and token count statistics.

:mod:`core.analysis.job` computes the result in separate processes.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from core.analysis.problems import Problem
from core.config.choices import Objective, Overlong
from core.data.exclusion import EXCLUDED
from core.template.settings import MaskSettings, mask_settings

if TYPE_CHECKING:
    from core.config.schema import Config


#: Most bars of the histogram.
BUCKETS = 24

#: Round widths of a bar, to be multiplied by a power of ten; the smallest with few enough bars is taken.
_NICE = (1, 2, 4, 5, 8)


@dataclass(frozen=True)
class Bucket:
    """Histogram bar: rows of ``low`` to ``high - 1`` tokens."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class Lengths:
    """Token counts of the rows that the template renders, before rows are truncated or dropped for their length.

    Args:
        rows: Number of rows.
        min: Tokens of the shortest row.
        p50: Median.
        p95: 95th percentile.
        max: Tokens of the longest row.
        tokens: Tokens of all rows.
        supervised: Tokens trained on.
        longest: Number of the longest row.
        buckets: The histogram, all bars of the same width.
    """

    rows: int
    min: int
    p50: int
    p95: int
    max: int
    tokens: int
    supervised: int
    longest: int
    buckets: tuple[Bucket, ...]

    @property
    def supervised_share(self) -> float:
        """Share of tokens that are trained on."""
        return self.supervised / self.tokens if self.tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "buckets"}
        histogram = [[bucket.low, bucket.high, bucket.count] for bucket in self.buckets]
        return {**values, "supervised_share": self.supervised_share, "histogram": histogram}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lengths:
        """The inverse of :meth:`to_dict`."""
        values = {name: data[name] for name in cls.__dataclass_fields__ if name != "buckets"}
        return cls(**values, buckets=tuple(Bucket(*bucket) for bucket in data["histogram"]))


def measure_lengths(lengths: Sequence[int], numbers: Sequence[int], tokens: int, supervised: int) -> Lengths | None:
    """Statistics of row lengths; None for no rows.

    Args:
        lengths: Tokens of each row.
        numbers: Number of each of these rows.
        tokens: Tokens of all rows; a row trained on in several sequences counts the tokens of each.
        supervised: Tokens trained on.
    """
    if not lengths:
        return None
    ordered = array("I", sorted(lengths))
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    return Lengths(
        rows=len(ordered),
        min=ordered[0],
        p50=percentile(ordered, 0.5),
        p95=percentile(ordered, 0.95),
        max=ordered[-1],
        tokens=tokens,
        supervised=supervised,
        longest=numbers[longest],
        buckets=_histogram(ordered),
    )


def percentile(ordered: Sequence[int], share: float) -> int:
    """Percentile of ascending values by the nearest-rank method."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def _histogram(ordered: Sequence[int]) -> tuple[Bucket, ...]:
    widths = (step * 10**power for power in itertools.count() for step in _NICE)
    width = next(width for width in widths if ordered[-1] // width < BUCKETS)
    counts = [0] * (ordered[-1] // width + 1)
    for length in ordered:
        counts[length // width] += 1
    return tuple(Bucket(place * width, (place + 1) * width, count) for place, count in enumerate(counts))


@dataclass(frozen=True)
class AnalysisRequest:
    """Datasets and settings of an analysis.

    Args:
        train: Entries as in ``data.train``.
        eval: Entries as in ``data.eval``, checked for rows that are also trained on.
        format: As ``data.format``.
        columns: As ``data.columns``.
        masks: Settings of tokenization and loss mask; None to skip tokenization.
        overlong: As ``data.overlong``.
        weights: As ``data.weights``, one for each entry of ``train``; None: all 1.
        eval_share: As ``data.eval_share``.
        seed: As ``train.seed``; decides the rows held out and left out.
        objective: As ``train.objective``; decides the rows trained on. None to suit the rows.
        exclude: Entries as in ``data.exclude``.
        is_part: True if ``train`` is only a part of the training files, so that ``exclude`` may name rows of others.
    """

    train: tuple[str, ...]
    eval: tuple[str, ...] = ()
    format: str = "auto"
    columns: dict[str, str] | None = None
    masks: MaskSettings | None = None
    overlong: Overlong = "drop"
    weights: tuple[float, ...] | None = None
    eval_share: float = 0.0
    seed: int = 0
    objective: Objective | None = "sft"
    exclude: tuple[str, ...] = ()
    is_part: bool = False

    @property
    def max_length(self) -> int:
        """Greatest length of a row, in tokens; 0 for no limit, or without a tokenizer."""
        return (self.masks.max_length or 0) if self.masks is not None else 0

    def without_limit(self) -> AnalysisRequest:
        """This request for rows of any length."""
        return self if self.masks is None else replace(self, masks=replace(self.masks, max_length=None))

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AnalysisRequest:
        """The inverse of :meth:`to_dict`."""
        weights = None if data["weights"] is None else tuple(data["weights"])
        masks = None if data["masks"] is None else MaskSettings(**data["masks"])
        tuples = {name: tuple(data[name]) for name in ("train", "eval", "exclude")} | {"weights": weights}
        return cls(**{**data, **tuples, "masks": masks})


@dataclass(frozen=True)
class SourceFormat:
    """Detected format of one source.

    Args:
        name: Name in the configuration.
        format: A name of :data:`~core.config.choices.FORMATS`.
        reason: Reason for the format, in one sentence.
        rows: Number of rows; they are numbered from 0 through all sources.
    """

    name: str
    format: str
    reason: str
    rows: int


@dataclass(frozen=True)
class Analysis:
    """Result of an analysis. ``rows == used + sum(dropped.values())``, the same counts as in the run.

    Args:
        sources: The sources trained on.
        rows: Rows read.
        used: Rows trained on.
        dropped: Number of rows not trained on, by reason. Reasons that need tokens are found only with a model.
        problems: Problems that drop rows, then problems to review; a row may have several.
        turns: Number of rows by number of messages.
        scripts: Number of rows by main writing system; each row counts once.
        lengths: Token counts, if there is a model.
        stop_learned: Usable rows whose last trained token ends an answer, if there is a model, including rows held out
            or left out by weight.
        eval_rows: Held-out rows read.
        held_out: Rows of the sources that ``data.eval_share`` holds out, by number.
        seconds: Duration in seconds.
    """

    sources: tuple[SourceFormat, ...]
    rows: int
    used: int
    dropped: dict[str, int]
    problems: tuple[Problem, ...]
    turns: dict[int, int] = field(default_factory=dict)
    scripts: dict[str, int] = field(default_factory=dict)
    lengths: Lengths | None = None
    stop_learned: int | None = None
    eval_rows: int = 0
    held_out: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def ordered(self) -> int:
        """Rows in the order of an epoch, by which its steps are counted: those trained on, and the gaps of
        ``data.exclude``."""
        return self.used + self.dropped.get(EXCLUDED, 0)

    def problem(self, code: str) -> Problem | None:
        """The problem with a code, or None."""
        return next((problem for problem in self.problems if problem.code == code), None)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON between processes."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **values,
            "sources": [asdict(source) for source in self.sources],
            "problems": [problem.to_dict() for problem in self.problems],
            "turns": {str(count): rows for count, rows in self.turns.items()},
            "lengths": self.lengths.to_dict() if self.lengths is not None else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Analysis:
        """The inverse of :meth:`to_dict`."""
        values = {
            **data,
            "sources": tuple(SourceFormat(**source) for source in data["sources"]),
            "problems": tuple(Problem.from_dict(problem) for problem in data["problems"]),
            "turns": {int(count): rows for count, rows in data["turns"].items()},
            "lengths": Lengths.from_dict(data["lengths"]) if data["lengths"] is not None else None,
            "held_out": tuple(data["held_out"]),
        }
        return cls(**values)


def request_for(config: Config, *, model: str | None, template: str | None = None) -> AnalysisRequest:
    """The analysis request for a run with a configuration.

    Args:
        config: The configuration.
        model: Directory of the tokenizer; None to skip tokenization.
        template: Text of a chat template instead of the model's own.
    """

    def entries(value: str | list[str] | None) -> tuple[str, ...]:
        return () if value is None else (value,) if isinstance(value, str) else tuple(value)

    data = config.data
    return AnalysisRequest(
        train=entries(data.train),
        eval=entries(data.eval),
        format=data.format,
        columns=cast("dict[str, str] | None", data.columns),
        masks=None if model is None else mask_settings(config, model, template),
        overlong=data.overlong,
        weights=tuple(data.weights) if data.weights is not None else None,
        eval_share=data.eval_share,
        seed=config.train.seed,
        objective=config.train.objective,
        exclude=data.excluded,
    )

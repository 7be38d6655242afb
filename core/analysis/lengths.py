"""Token count statistics: percentiles and a histogram of row lengths."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Most bars of the histogram.
BUCKETS = 24

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
    width = _bucket_width(ordered[-1])
    counts = [0] * (ordered[-1] // width + 1)
    for length in ordered:
        counts[length // width] += 1
    return tuple(Bucket(place * width, (place + 1) * width, count) for place, count in enumerate(counts))


def _bucket_width(longest: int) -> int:
    """Smallest round bar width with at most :data:`BUCKETS` bars."""
    scale = 1
    while True:
        for step in _NICE:
            if longest // (step * scale) < BUCKETS:
                return step * scale
        scale *= 10

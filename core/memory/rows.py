"""What is known of the training rows before they are loaded: how many there are of each length."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.analysis.lengths import Lengths
from core.config.choices import Overlong
from core.memory.batching import (
    LENGTH_MULTIPLE,
    Runs,
    largest_shape,
    length_runs,
    padded_length,
    runs_of_histogram,
)


@dataclass(frozen=True)
class Rows:
    """The training rows.

    Args:
        runs: Rows of each padded length, longest first.
        supervised: Share of the tokens that is learned.
        tokens: Of all rows, padding left out; None where unknown.
        blur: By how much a row may be shorter than its run says, where only a histogram is known.
    """

    runs: Runs
    supervised: float = 1.0
    tokens: int | None = None
    blur: int = 0

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(count for _, count in self.runs)

    def largest_shape(self, batch_size: int, token_budget: int, max_rows: int | None = None) -> tuple[int, int, int]:
        """As :func:`~core.memory.batching.largest_shape`; where lengths are blurred, the largest that there may be."""
        best = largest_shape(self.runs, batch_size, token_budget, max_rows)
        if self.blur:
            # Were all rows shorter, more of them would share a micro-batch.
            shorter = [(max(width - self.blur, LENGTH_MULTIPLE), count) for width, count in self.runs]
            before, rows, width = largest_shape(shorter, batch_size, token_budget, max_rows)
            width = max(width, min(width + self.blur, token_budget // rows // LENGTH_MULTIPLE * LENGTH_MULTIPLE))
            if rows * width > best[1] * best[2]:
                return before, rows, width
        return best

    def limited(self, max_length: int, overlong: Overlong) -> Rows | None:
        """The rows that are left of these when none may be longer; None for none.

        Tokens go down in proportion, as only the lengths' histogram may be known.
        """
        widest = padded_length(max_length)
        if self.runs[0][0] <= widest:
            return self
        if overlong == "truncate":
            kept = runs_of_histogram((min(width, widest), count) for width, count in self.runs)
        else:
            kept = [(width, count) for width, count in self.runs if width <= widest]
        if not kept:
            return None
        before = sum(width * count for width, count in self.runs)
        after = sum(width * count for width, count in kept)
        tokens = None if self.tokens is None else round(self.tokens * after / before)
        return replace(self, runs=kept, tokens=tokens)


def rows_of_lengths(lengths: Lengths) -> Rows:
    """Rows as the analysis of a dataset has measured them.

    Every row is taken to be as long as the longest of its bar, so that no micro-batch comes out too small.
    """
    bars = [(min(bucket.high - 1, lengths.max), bucket.count) for bucket in lengths.buckets]
    blur = padded_length(max((bucket.high - bucket.low for bucket in lengths.buckets), default=0))
    return Rows(runs_of_histogram(bars), lengths.supervised_share, lengths.tokens, blur)


def rows_of_tokens(lengths: list[int], supervised: int) -> Rows:
    """Rows whose lengths are known one by one.

    Args:
        lengths: Tokens of each.
        supervised: Tokens that are learned, of all.
    """
    total = sum(lengths)
    return Rows(length_runs(lengths), supervised / total if total else 1.0, total)

"""What is known of the training rows before they are loaded: how many there are of each length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from core.data.lengths import Lengths
from core.memory.batching import Runs, length_runs, padded_length, runs_of_histogram


@dataclass(frozen=True)
class Rows:
    """The training rows.

    Args:
        runs: Rows of each padded length, longest first.
        supervised: Share of the tokens that is learned.
        tokens: Of all rows, padding left out; None where unknown.
    """

    runs: Runs
    supervised: float = 1.0
    tokens: int | None = None

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(count for _, count in self.runs)

    def limited(self, max_length: int, overlong: Literal["drop", "truncate", "refuse"]) -> Rows | None:
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
    return Rows(runs_of_histogram(bars), lengths.supervised_share, lengths.tokens)


def rows_of_tokens(lengths: list[int], supervised: int) -> Rows:
    """Rows whose lengths are known one by one.

    Args:
        lengths: Tokens of each.
        supervised: Tokens that are learned, of all.
    """
    total = sum(lengths)
    return Rows(length_runs(lengths), supervised / total if total else 1.0, total)

"""Row lengths for the memory plan: the number of training rows of each length, known before they are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.analysis.result import Lengths
from core.config.choices import Overlong
from core.memory.batching import LENGTH_MULTIPLE, Runs, largest_shape, length_runs, padded_length, runs_of_histogram


@dataclass(frozen=True)
class Rows:
    """Lengths of the training rows.

    Args:
        runs: Number of rows of each padded length, longest first.
        supervised: Share of tokens in the loss.
        tokens: Tokens of all rows without padding; None if unknown.
        blur: Most tokens that a row may be shorter than its run, if only a histogram is known.
    """

    runs: Runs
    supervised: float = 1.0
    tokens: int | None = None
    blur: int = 0

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(count for _, count in self.runs)

    def largest_shape(self, batch_size: int, token_budget: int, max_rows: int | None = None) -> tuple[int, int, int]:
        """Largest micro-batch, as :func:`~core.memory.batching.largest_shape`; with blurred lengths, the largest
        possible.
        """
        best = largest_shape(self.runs, batch_size, token_budget, max_rows)
        if self.blur:
            # If all rows are shorter, more of them share a micro-batch.
            shorter = [(max(width - self.blur, LENGTH_MULTIPLE), count) for width, count in self.runs]
            before, rows, width = largest_shape(shorter, batch_size, token_budget, max_rows)
            width = max(width, min(width + self.blur, token_budget // rows // LENGTH_MULTIPLE * LENGTH_MULTIPLE))
            if rows * width > best[1] * best[2]:
                return before, rows, width
        return best

    def typical_window(self, batch_size: int) -> list[int]:
        """Padded lengths of the rows of a typical optimizer step, longest first: evenly spaced among all rows.

        Args:
            batch_size: Rows in an optimizer step.
        """
        count = min(batch_size, self.count)
        found: list[int] = []
        passed = 0
        for width, rows in self.runs:
            passed += rows
            while len(found) < count and (len(found) + 0.5) * self.count / count <= passed:
                found.append(width)
        return found

    def limited(self, max_length: int, overlong: Overlong) -> Rows | None:
        """Rows after truncating or dropping the overlong ones; None if none are left.

        Tokens are reduced in proportion, as only a histogram of lengths may be known.
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
    """Rows from the token counts of a dataset analysis.

    Every row counts as long as the longest of its bar, so that no micro-batch is underestimated.
    """
    bars = [(min(bucket.high - 1, lengths.max), bucket.count) for bucket in lengths.buckets]
    blur = padded_length(max((bucket.high - bucket.low for bucket in lengths.buckets), default=0))
    return Rows(runs_of_histogram(bars), lengths.supervised_share, lengths.tokens, blur)


def rows_of_tokens(lengths: list[int], supervised: int) -> Rows:
    """Rows with individually known lengths.

    Args:
        lengths: Tokens of each row.
        supervised: Tokens in the loss, of all rows.
    """
    total = sum(lengths)
    return Rows(length_runs(lengths), supervised / total if total else 1.0, total)

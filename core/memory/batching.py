"""How an optimizer step's rows are cut into micro-batches, as far as sizes go: the worker's rule, and the plan's."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

#: Tokens of a micro-batch, padding included, to begin with. On a CPU more does not make it faster.
TOKEN_BUDGETS = {"cpu": 2048, "cuda": 8192}
#: A token budget that no window reaches: all rows of a step at once.
WHOLE = 1 << 40
#: Row lengths are padded to a multiple of this, so that the shapes are few.
LENGTH_MULTIPLE = 8
#: What the fp32 logits of a chunk of supervised positions and their gradient may take together. More of them make a CPU
#: slower: at a vocabulary of 49,152, chunks of 1,024 positions take 1.8 times the time of 512, at 128,256 1.5 times
#: that of 256; fewer positions than this leaves read the head too often to keep a GPU busy.
LOGITS_BYTES = 256 << 20
#: Chunks are powers of two between these: smaller ones leave the products of the head too thin to be fast.
FEWEST_POSITIONS, MOST_POSITIONS = 64, 1024

#: The longest rows that go through the worker's own attention on a CPU; torch's kernel is faster from there on.
SHORT_ROW = 256

#: Rows of one padded length, longest first: ``(length, rows)``.
Runs = Sequence[tuple[int, int]]


def padded_length(length: int) -> int:
    """A row's length on the device."""
    return math.ceil(length / LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def chunk_positions(vocabulary: int) -> int:
    """Supervised positions whose logits exist at one time.

    Args:
        vocabulary: Logits of a position.
    """
    within = max(LOGITS_BYTES // (2 * 4 * vocabulary), 1)
    return min(max(1 << (within.bit_length() - 1), FEWEST_POSITIONS), MOST_POSITIONS)


def length_runs(lengths: Iterable[int]) -> list[tuple[int, int]]:
    """How many rows there are of each padded length, longest first."""
    return sorted(Counter(map(padded_length, lengths)).items(), reverse=True)


def largest_shape(
    runs: Runs, batch_size: int, token_budget: int, max_rows: int | None = None, *, shared: int = 0
) -> tuple[int, int, int]:
    """The micro-batch with most tokens, padding included, that rows of these lengths can make.

    Args:
        runs: As :func:`length_runs` makes them; not empty.
        batch_size: Rows in an optimizer step.
        token_budget: The most tokens of a micro-batch; a single longer row is one all the same.
        max_rows: The most rows of a micro-batch.
        shared: Tokens at the beginning of all rows that are there once for all of them.

    Returns:
        How many longer rows come before its first one, its rows, and its padded length.
    """
    total = sum(count for _, count in runs)
    # A shorter longest row may leave room for so many rows that the whole is larger.
    best, most, before = (0, 1, runs[0][0]), 0, 0
    for width, count in runs:
        rows = min(batch_size, max_rows or batch_size, max(1, token_budget // width), total - before)
        tokens = shared + rows * padded_length(width - shared)
        if tokens > most:
            best, most = (before, rows, width), tokens
        before += count
    return best


def tokens_of_rows(runs: Runs, before: int, rows: int) -> int:
    """Tokens of some rows next to one another, their own padding included but not that to the longest of them.

    Args:
        runs: As :func:`length_runs` makes them.
        before: How many longer rows come before the first of them.
        rows: How many there are.
    """
    found = 0
    for width, count in runs:
        taken = min(max(count - before, 0), rows)
        before, rows = max(before - count, 0), rows - taken
        found += taken * width
    return found


def runs_of_histogram(bars: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs from a histogram: each bar's rows taken as long as its longest can be.

    Args:
        bars: For each bar its longest length and its number of rows.
    """
    padded = sorted(((padded_length(length), count) for length, count in bars if count), reverse=True)
    grouped = itertools.groupby(padded, key=lambda bar: bar[0])
    return [(width, sum(count for _, count in same)) for width, same in grouped]

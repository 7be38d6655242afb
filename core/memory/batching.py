"""Micro-batching: rows of an optimizer step into micro-batches, the same for the worker and the memory plan."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

#: Initial token budget of a micro-batch, padding included. On a CPU a larger one is not faster.
TOKEN_BUDGETS = {"cpu": 2048, "cuda": 8192}
#: The smallest planned token budget is the initial one divided by this: matrix products of fewer tokens are too thin to
#: be fast.
SMALLEST_SHARE = 4
#: Token budget that no window reaches: all rows of a step at once.
WHOLE = 1 << 40
#: Row lengths are padded to a multiple of this, for few distinct shapes.
LENGTH_MULTIPLE = 8
#: Most bytes of the logits of a chunk of supervised positions, which their gradient overwrites. A CPU gains nothing
#: by larger chunks; smaller ones read the head too often to keep a GPU busy.
LOGITS_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
#: Chunk sizes are powers of two in this range; smaller ones make the matrix products of the head too thin to be fast.
FEWEST_POSITIONS, MOST_POSITIONS = 64, 1024
#: Bytes of the logits that torch's own operations cast to fp32 at a time: on a CPU they stay in its caches, on a GPU
#: they are enough to keep it busy.
SLICE_BYTES = {"cpu": 4 << 20, "cuda": 16 << 20}

#: Longest rows for the worker's own attention on a CPU by whole products, and by blocks of queries; torch's kernel is
#: faster from there on.
SHORT_ROW, BLOCK_ROW = 256, 1024
#: Queries of a block: more compute too many scores that the mask drops, fewer make the products too thin.
QUERY_BLOCK = 32

#: Rows of one padded length, longest first: ``(length, rows)``.
Runs = Sequence[tuple[int, int]]


def padded_length(length: int) -> int:
    """Length of a row after padding."""
    return math.ceil(length / LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def chunk_positions(vocabulary: int, width: int, device: str) -> int:
    """Chunk size of the loss: supervised positions whose logits exist at one time.

    Args:
        vocabulary: Size of the vocabulary.
        width: Bytes of a logit.
        device: Type of the device, ``cpu`` or ``cuda``.
    """
    within = max(LOGITS_BYTES.get(device, LOGITS_BYTES["cuda"]) // (width * vocabulary), 1)
    return min(max(1 << (within.bit_length() - 1), FEWEST_POSITIONS), MOST_POSITIONS)


def slice_positions(vocabulary: int, device: str) -> int:
    """Positions whose logits are cast to fp32 at one time, where no kernel does without.

    Args:
        vocabulary: Size of the vocabulary.
        device: Type of the device, ``cpu`` or ``cuda``.
    """
    return max(SLICE_BYTES.get(device, SLICE_BYTES["cuda"]) // (4 * vocabulary), 1)


def length_runs(lengths: Iterable[int]) -> list[tuple[int, int]]:
    """Number of rows of each padded length, longest first."""
    return sorted(Counter(map(padded_length, lengths)).items(), reverse=True)


def token_budgets(first: int, longest: int) -> list[int]:
    """Token budgets to choose from: the first one and its halves, down to the longest row, whose micro-batch cannot be
    cut.

    Args:
        first: Initial token budget; :data:`WHOLE` is the only choice if a step is a single pass.
        longest: Tokens of the longest row, padding and all of its sequences included.
    """
    if first >= WHOLE:
        return [first]
    found = [first]
    while found[-1] > max(longest, first // SMALLEST_SHARE):
        found.append(max(found[-1] // 2, longest))
    return found


def micro_batches(widths: Sequence[int], token_budget: int, max_rows: int | None = None) -> list[tuple[int, int]]:
    """Micro-batches that rows of a step are cut into.

    Args:
        widths: Padded length of each row, longest first.
        token_budget: Most tokens of a micro-batch, padding included; a single longer row still forms one.
        max_rows: Most rows of a micro-batch.

    Returns:
        Rows and padded length of each.
    """
    found: list[tuple[int, int]] = []
    for width in widths:
        if found:
            rows, longest = found[-1]
            if (rows + 1) * longest <= token_budget and (max_rows is None or rows < max_rows):
                found[-1] = rows + 1, longest
                continue
        found.append((1, width))
    return found


def largest_shape(
    runs: Runs, batch_size: int, token_budget: int, max_rows: int | None = None, *, shared: int = 0
) -> tuple[int, int, int]:
    """Largest micro-batch, in tokens with padding, that rows of these lengths can form.

    Args:
        runs: Result of :func:`length_runs`; not empty.
        batch_size: Rows in an optimizer step.
        token_budget: Most tokens of a micro-batch; a single longer row still forms one.
        max_rows: Most rows of a micro-batch.
        shared: Prefix tokens that all rows share and that are stored once.

    Returns:
        Number of longer rows before its first one, number of its rows, and its padded length.
    """
    total = sum(count for _, count in runs)
    # A shorter longest row may allow more rows and so a larger micro-batch.
    best, most, before = (0, 1, runs[0][0]), 0, 0
    for width, count in runs:
        rows = min(batch_size, max_rows or batch_size, max(1, token_budget // width), total - before)
        tokens = shared + rows * padded_length(width - shared)
        if tokens > most:
            best, most = (before, rows, width), tokens
        before += count
    return best


def tokens_of_rows(runs: Runs, before: int, rows: int) -> int:
    """Tokens of consecutive rows, each padded to its own length only.

    Args:
        runs: Result of :func:`length_runs`.
        before: Number of longer rows before the first of them.
        rows: Number of rows.
    """
    found = 0
    for width, count in runs:
        taken = min(max(count - before, 0), rows)
        before, rows = max(before - count, 0), rows - taken
        found += taken * width
    return found


def runs_of_histogram(bars: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs from a histogram: rows count as the longest length of their bar.

    Args:
        bars: For each bar its longest length and its number of rows.
    """
    padded = sorted(((padded_length(length), count) for length, count in bars if count), reverse=True)
    grouped = itertools.groupby(padded, key=lambda bar: bar[0])
    return [(width, sum(count for _, count in same)) for width, same in grouped]

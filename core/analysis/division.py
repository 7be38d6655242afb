"""Training split: the usable rows held out, and how often each other row is trained on.

The worker and the analysis share it, so the counts shown before a run match the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from core.analysis.duplicates import Fingerprints, group_keys


def held_out_rows(keys: Sequence[bytes], share: float, seed: int) -> set[int]:
    """Choose the rows to hold out of training.

    Rows with the same key stay together, so no copy of a held-out row is trained on. Groups are taken in a random order
    fixed by the seed, each if it fits, until the share is reached; at least one group is held out and at least one is
    left.

    Args:
        keys: Key of each row; equal for equal rows.
        share: Share of the rows, from 0 to 1.
        seed: Seed of the order.

    Returns:
        Positions of the held-out rows; empty if the share is 0 or all rows are equal.
    """
    groups: dict[bytes, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    if share <= 0 or len(groups) < 2:
        return set()
    wanted = held_out_count(len(keys), share)
    ordered = sorted(groups, key=lambda key: _rank(key, seed))
    chosen: set[int] = set()
    for key in ordered:
        if len(chosen) + len(groups[key]) <= wanted:
            chosen.update(groups[key])
    return chosen or set(groups[min(ordered, key=lambda key: len(groups[key]))])


def held_out_count(rows: int, share: float) -> int:
    """Number of rows held out, if no two rows are alike."""
    return max(round(share * rows), 1) if share > 0 and rows > 1 else 0


def repeats(keys: Sequence[bytes], weight: float, seed: int) -> list[int]:
    """Number of times that each row of a file is used in an epoch.

    The integer part of the weight applies to every row, its fraction to that share of the rows, chosen by the seed. 0.5
    uses half of the rows once, 2 all rows twice, 1.5 all rows once and half of them again.

    Args:
        keys: Key of each row.
        weight: The weight, above 0.
        seed: Seed of the choice of rows for the fraction.
    """
    whole = int(weight)
    extra = round((weight - whole) * len(keys))
    if not whole and not extra:
        # A small weight on a small file still uses at least one row.
        extra = min(len(keys), 1)
    ranked = sorted(range(len(keys)), key=lambda position: (_rank(keys[position], seed), position))
    counts = [whole] * len(keys)
    for position in ranked[:extra]:
        counts[position] += 1
    return counts


def _rank(key: bytes, seed: int) -> bytes:
    return hashlib.blake2b(key, digest_size=16, key=seed.to_bytes(8, "little")).digest()


#: Reasons for not training on a row that has no defect: held out for evaluation, left out by ``data.weights``.
HELD_OUT, NOT_SAMPLED = "held_out", "not_sampled"


#: Smallest acceptable ratio of held-out rows to the requested share (or its inverse) with near duplicates kept on one
#: side; below it, only equal rows are kept together.
_LEAST_PART = 0.5


@dataclass(frozen=True)
class Division:
    """Rows held out, and repetitions of the rows trained on.

    Args:
        held_out: Positions of the rows held out.
        counts: Times that each row is trained on in an epoch.
        crosses: True if near duplicates may be on both sides; equal rows never are.
    """

    held_out: set[int]
    counts: list[int]
    crosses: bool = False


def divide_rows(
    rows: Fingerprints, bounds: Sequence[int], weights: Sequence[float], share: float, seed: int
) -> Division:
    """Split rows into held-out rows and rows trained on, repeated by weight.

    Near duplicates stay on one side. If that leaves too few rows to hold out (one long question asked about many
    subjects, for example), only equal rows stay together.

    Args:
        rows: The usable rows.
        bounds: First row of each entry of ``data.train``, then the number of rows.
        weights: Weight of each entry; see :func:`~core.analysis.division.repeats`.
        share: Share of the rows to hold out; see :func:`~core.analysis.division.held_out_rows`.
        seed: Seed of the choice of rows.
    """
    keys = list(rows.keys())
    kept_out: set[int] = set()
    crosses = False
    if share > 0:
        groups, wanted = group_keys(rows), share * len(keys)
        kept_out = held_out_rows(groups, share, seed)
        if not _LEAST_PART * wanted <= len(kept_out) <= max(wanted / _LEAST_PART, 1):
            kept_out = held_out_rows(keys, share, seed)
            inside = {groups[position] for position in kept_out}
            crosses = any(group in inside for position, group in enumerate(groups) if position not in kept_out)
    counts: list[int] = []
    for start, end, weight in zip(bounds, bounds[1:], weights, strict=False):
        own = [position for position in range(start, end) if position not in kept_out]
        times = dict(zip(own, repeats([keys[position] for position in own], weight, seed), strict=True))
        counts += [times.get(position, 0) for position in range(start, end)]
    return Division(kept_out, counts, crosses)

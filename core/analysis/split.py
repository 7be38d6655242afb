"""Held-out split and weighted repetition of rows, both reproducible from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


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

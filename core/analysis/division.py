"""What becomes of the rows that could be used: trained on, how often, or not, as the configuration asks.

The worker and the analysis both count with it, so that what is shown before a run is what the run then does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.analysis.duplicates import Fingerprints, group_keys
from core.analysis.split import held_out_rows, repeats

#: Reasons that the configuration gives and no row is to blame for: kept for measuring, left out by ``data.weights``.
HELD_OUT, NOT_SAMPLED = "held_out", "not_sampled"


#: Least part of the share asked for that rows which are like no others must make up, to be all that is held out.
_LEAST_PART = 0.5


@dataclass(frozen=True)
class Division:
    """What is held out, and what is trained on.

    Args:
        held_out: Positions of the rows held out.
        counts: For each row how often it is trained on in an epoch.
        crosses: Whether rows that are almost the same may be on both sides; rows that are the same never are.
    """

    held_out: set[int]
    counts: list[int]
    crosses: bool = False


def divide_rows(
    rows: Fingerprints, bounds: Sequence[int], weights: Sequence[float], share: float, seed: int
) -> Division:
    """Hold rows out and repeat the others by weight.

    Rows that are almost the same are on one side. Where so many are that too few others are left to hold out, as of one
    long question asked about many things, only those that are the same are.

    Args:
        rows: The usable rows.
        bounds: Where the rows of each entry of ``data.train`` begin, and where the last one's end.
        weights: One for each entry; see :func:`~core.analysis.split.repeats`.
        share: Of all rows, to be held out; see :func:`~core.analysis.split.held_out_rows`.
        seed: Decides which rows.
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

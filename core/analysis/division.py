"""Training split: the usable rows held out, and how often each other row is trained on.

The worker and the analysis share it, so the counts shown before a run match the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.analysis.duplicates import Fingerprints, group_keys
from core.analysis.split import held_out_rows, repeats

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
        weights: Weight of each entry; see :func:`~core.analysis.split.repeats`.
        share: Share of the rows to hold out; see :func:`~core.analysis.split.held_out_rows`.
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

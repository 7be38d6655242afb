"""What becomes of the rows that could be used: trained on, how often, or not, as the configuration asks.

The worker and the analysis both count with it, so that what is shown before a run is what the run then does.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.data.split import held_out_rows, repeats

#: Reasons that the configuration gives and no row is to blame for: kept for measuring, left out by ``data.weights``.
HELD_OUT, NOT_SAMPLED = "held_out", "not_sampled"


def divide_rows(
    keys: Sequence[bytes], bounds: Sequence[int], weights: Sequence[float], share: float, seed: int
) -> tuple[set[int], list[int]]:
    """Hold rows out and repeat the others by weight.

    Args:
        keys: One for each usable row, equal for equal rows.
        bounds: Where the rows of each entry of ``data.train`` begin, and where the last one's end.
        weights: One for each entry; see :func:`~core.data.split.repeats`.
        share: Of all rows, to be held out; see :func:`~core.data.split.held_out_rows`.
        seed: Decides which rows.

    Returns:
        The positions of the rows held out, and for each row how often it is trained on in an epoch.
    """
    kept_out = held_out_rows(keys, share, seed)
    counts: list[int] = []
    for start, end, weight in zip(bounds, bounds[1:], weights, strict=False):
        own = [position for position in range(start, end) if position not in kept_out]
        times = dict(zip(own, repeats([keys[position] for position in own], weight, seed), strict=True))
        counts += [times.get(position, 0) for position in range(start, end)]
    return kept_out, counts

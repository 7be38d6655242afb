"""Shares of a step's rows: split among processes so that they finish together. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def split_rows(window: Sequence[int], costs: Sequence[int], count: int) -> list[list[int]]:
    """Split the rows of a step among processes.

    Longest first, each row goes to the process with the fewest tokens so far (Graham's rule: no process gets more than
    4/3 of the best split's most). It depends on rows and their lengths alone, so that every process finds the same.

    Args:
        window: Row indices.
        costs: Tokens of each row of the data.
        count: Number of processes.

    Returns:
        For each process its rows, in the order of the window; empty where there are fewer rows than processes.
    """
    loads = [0] * count
    owner: dict[int, int] = {}
    for place in sorted(range(len(window)), key=lambda place: (-costs[window[place]], place)):
        lightest = min(range(count), key=lambda rank: (loads[rank], rank))
        owner[place] = lightest
        loads[lightest] += costs[window[place]]
    return [[window[place] for place in range(len(window)) if owner[place] == rank] for rank in range(count)]

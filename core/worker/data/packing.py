"""Sequence packing and shared prefixes: the rows of a batch in one sequence, with nothing computed twice and hardly any
padding.

Tokens after a row's last supervised token have no effect and are left out. If rows begin alike, like conversations with
one system prompt or the two answers of a pair, the common prefix is computed once and each row continues it. Every
hidden state in the loss is the same as with the row alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.memory.batching import padded_length
from core.worker.data.batches import upload
from core.worker.data.encode import TokenizedRow
from core.worker.fused.attention import Group, Layout

#: Minimum share of tokens that a shared prefix must save to be worth its own part of each attention.
WORTHWHILE = 0.05
#: Cost of a pair of tokens behind a dense mask, relative to causal attention: the mask must be read, and kernels that
#: take one are slower. Masked pairs are computed as well, and count. An estimate.
MASKED_PAIR = 2.0

#: Members of each group, and the length of their prefix.
Grouping = list[tuple[list[int], int]]
IntRows = np.ndarray[Any, np.dtype[np.int64]]
BoolRows = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Packing:
    """Packing of batches in a run."""

    share: bool = False
    """True to compute common prefixes once."""
    pack: bool = False
    """True to concatenate rows without padding."""
    common: int = 0
    """Length in tokens of the prefix common to all rows, before any supervised token; 0 if none is shared."""
    pair: float = 0.0
    """Cost of a pair of tokens in attention, relative to a token going through the layers, if the device needs dense
    masks for shared prefixes; else 0, so only saved tokens count."""


@dataclass(frozen=True)
class LaidOut:
    """A batch as one sequence."""

    input_ids: torch.Tensor
    """``(1, tokens)``, int64."""
    position_ids: torch.Tensor
    """``(1, tokens)``, int64: position of each token in its row; for padding, the row's last position."""
    layout: Layout
    predicting_positions: torch.Tensor
    """``(supervised,)``, int64: position that predicts each supervised token, row by row."""


def choose_layout(
    input_ids: IntRows,
    supervised: BoolRows,
    device: torch.device,
    *,
    most_shared: int | None = None,
    pack: bool,
    pair: float = 0.0,
) -> LaidOut | None:
    """Pack a padded batch into the layout with the fewest tokens.

    Args:
        input_ids: ``(rows, width)``.
        supervised: ``(rows, width)``: tokens in the loss, except a first token, which nothing predicts.
        device: Target device.
        most_shared: Maximum length in tokens of a shared prefix that is computed once; None for no limit.
        pack: Leave out all padding; otherwise rows after one prefix have one width.
        pair: As in :class:`Packing`.

    Returns:
        The layout; None if the padded batch is as good.
    """
    lengths = _lengths(supervised)
    free = [_free(row) for row in supervised]
    if most_shared is not None:
        free = [min(tokens, most_shared) for tokens in free]
    groups = _best_grouping(input_ids, lengths, free)
    if pack:
        groups = [single for members, prefix in groups for single in _split(members, prefix, lengths)]
    else:
        rows, width = input_ids.shape
        padded = input_ids.size + pair * rows * width**2 / 2
        if _tokens(groups, lengths) + pair * _pairs(groups, lengths) > (1 - WORTHWHILE) * padded:
            return None
    return lay_out(input_ids, supervised, device, groups)


def _lengths(supervised: BoolRows) -> list[int]:
    """Length in tokens of each row up to its last supervised token."""
    return [int(row.nonzero()[0].max(initial=0)) + 1 for row in supervised]


def _free(supervised: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """Number of leading tokens that may be shared. The token before the first supervised one stays in the row, because
    its hidden state predicts for this row alone."""
    return max(0, int(supervised.argmax()) - 1)


def common_beginning(rows: Iterable[TokenizedRow]) -> int:
    """Length in tokens of the common prefix of all rows, before any supervised token.

    Args:
        rows: Training rows; both answers of a pair count.
    """
    first: np.ndarray[Any, np.dtype[np.int32]] | None = None
    for sequence in itertools.chain.from_iterable(row.sequences for row in rows):
        free = _free(sequence.supervised)
        if first is None:
            first = sequence.input_ids[:free]
            continue
        limit = min(len(first), free)
        differs = sequence.input_ids[:limit] != first[:limit]
        first = first[: int(differs.argmax()) if differs.any() else limit]
        if not len(first):
            return 0
    return 0 if first is None else len(first)


def _best_grouping(input_ids: IntRows, lengths: Sequence[int], free: Sequence[int]) -> Grouping:
    rows = len(lengths)
    together = list(range(rows))
    candidates = [[(together, 0)], [(together, _common(input_ids, together, free))]]
    if rows % 2 == 0 and rows > 2:
        # The two answers of a pair come half a batch apart; see core.worker.loss.objectives.
        pairs = [[row, row + rows // 2] for row in range(rows // 2)]
        candidates.append([(pair, _common(input_ids, pair, free)) for pair in pairs])
    return min(candidates, key=lambda groups: _tokens(groups, lengths))


def _common(input_ids: IntRows, members: Sequence[int], free: Sequence[int]) -> int:
    """Length in tokens of the common prefix of rows, before any supervised token; 0 for a single row."""
    limit = min(free[row] for row in members)
    if len(members) < 2 or limit <= 0:
        return 0
    differs = (input_ids[members, :limit] != input_ids[members[0], :limit]).any(axis=0)
    return int(differs.argmax()) if differs.any() else limit


def _tokens(groups: Grouping, lengths: Sequence[int]) -> int:
    return sum(prefix + len(members) * _width(members, prefix, lengths) for members, prefix in groups)


def _pairs(groups: Grouping, lengths: Sequence[int]) -> float:
    """Cost of the token pairs that attention computes, with pairs behind a dense mask weighted."""
    total = 0.0
    for members, prefix in groups:
        width = _width(members, prefix, lengths)
        own = MASKED_PAIR * width * (prefix + width) if prefix else width**2 / 2
        total += prefix**2 / 2 + len(members) * own
    return total


def _width(members: Sequence[int], prefix: int, lengths: Sequence[int]) -> int:
    return padded_length(max(lengths[row] for row in members) - prefix)


def _split(members: list[int], prefix: int, lengths: Sequence[int]) -> Grouping:
    """Rows without a prefix grouped by length; rows after a prefix stay together."""
    if prefix:
        return [(members, prefix)]
    ordered = sorted(members, key=lambda row: lengths[row])
    same: dict[int, list[int]] = {}
    for row in ordered:
        same.setdefault(lengths[row], []).append(row)
    return [(alike, 0) for alike in same.values()]


def lay_out(input_ids: IntRows, supervised: BoolRows, device: torch.device, groups: Grouping) -> LaidOut:
    """Pack a padded batch in given groups.

    Args:
        input_ids: ``(rows, width)``.
        supervised: ``(rows, width)``.
        device: Target device.
        groups: Rows with a common prefix, and its length; each row is in one group. Rows of one length without a prefix
            are not padded.
    """
    lengths = _lengths(supervised)
    ids: list[IntRows] = []
    positions: list[IntRows] = []
    starts: dict[int, tuple[int, int]] = {}
    made: list[Group] = []
    at = 0
    for members, prefix in groups:
        alike = not prefix and len({lengths[row] for row in members}) == 1
        width = lengths[members[0]] if alike else _width(members, prefix, lengths)
        made.append(Group(prefix, len(members), width))
        ids.append(input_ids[members[0], :prefix])
        positions.append(np.arange(prefix))
        at += prefix
        for row in members:
            own = input_ids[row, prefix : prefix + width]
            ids.append(np.pad(own, (0, width - len(own))))
            # Padding must not get positions beyond the learned ones.
            positions.append(np.minimum(np.arange(prefix, prefix + width), lengths[row] - 1))
            starts[row] = (at, prefix)
            at += width
    # Positions before the supervised tokens; none predicts a first token.
    before = [np.flatnonzero(supervised[row, 1:]) - starts[row][1] + starts[row][0] for row in range(len(input_ids))]
    return LaidOut(
        upload(np.concatenate(ids), device)[None],
        upload(np.concatenate(positions), device)[None],
        Layout(tuple(made)),
        upload(np.concatenate(before), device),
    )

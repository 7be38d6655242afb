"""Data order and micro-batches: the rows of each optimizer step (its window), and how they are cut and padded.

The order depends only on the seed and the step, so a resumed run sees the same rows as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.memory.batching import largest_shape, length_runs, padded_length
from core.worker.data.encode import TokenizedRow

#: Number of steps whose rows are sorted by length together: enough to avoid padding, few enough to stay random.
BUCKET_STEPS = 16


@dataclass(frozen=True)
class DataOrder:
    """Rows of every optimizer step, epoch after epoch.

    Rows that are left out keep their places in the order, so that all other rows are in the same steps as without it.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows per step; the last step of an epoch gets the rest.
        seed: Seed of the shuffling.
        excluded: Indices of the rows that are left out.
    """

    lengths: Sequence[int]
    batch_size: int
    seed: int
    excluded: frozenset[int] = frozenset()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the rows."""
        return math.ceil(len(self.lengths) / self.batch_size)

    def epoch(self, number: int) -> list[list[int]]:
        """Windows of one epoch, counted from 0: lists of row indices, with rows of similar length together."""
        random = np.random.default_rng((self.seed, number))
        shuffled = random.permutation(len(self.lengths))
        windows: list[list[int]] = []
        bucket_rows = self.batch_size * BUCKET_STEPS
        for start in range(0, len(shuffled), bucket_rows):
            bucket = sorted(shuffled[start : start + bucket_rows].tolist(), key=lambda row: (self.lengths[row], row))
            cut = [bucket[at : at + self.batch_size] for at in range(0, len(bucket), self.batch_size)]
            windows += [cut[place] for place in random.permutation(len(cut))]
        return windows

    def window(self, step: int) -> list[int]:
        """The rows of optimizer step ``step``, counted from 0; empty if all of them are left out."""
        whole = self.whole_window(step)
        return [row for row in whole if row not in self.excluded] if self.excluded else whole

    def whole_window(self, step: int) -> list[int]:
        """The rows of optimizer step ``step``, counted from 0, with those that are left out."""
        epoch, place = divmod(step, self.steps_per_epoch)
        cached: tuple[int, list[list[int]]] | None = self.__dict__.get("_cached")
        if cached is None or cached[0] != epoch:
            cached = (epoch, self.epoch(epoch))
            self.__dict__["_cached"] = cached
        return cached[1][place]


@dataclass(frozen=True)
class HostBatch:
    """Padded batch in host memory, where supervised positions can be read without a device sync."""

    input_ids: npt.NDArray[np.int64]
    """``(sequences, length)``."""
    supervised: npt.NDArray[np.bool_]
    """``(sequences, length)``."""

    def targets(self) -> npt.NDArray[np.int64]:
        """Supervised tokens, row by row, without a row's first token, which nothing predicts."""
        found: npt.NDArray[np.int64] = self.input_ids[:, 1:][self.supervised[:, 1:]]
        return found

    def predicting(self) -> npt.NDArray[np.int64]:
        """Positions whose hidden states predict them, in the flattened batch."""
        rows, columns = np.nonzero(self.supervised[:, 1:])
        found: npt.NDArray[np.int64] = rows * self.input_ids.shape[1] + columns
        return found

    def counts(self) -> list[int]:
        """Number of supervised tokens of each row."""
        found: list[int] = self.supervised[:, 1:].sum(axis=1).tolist()
        return found


@dataclass(frozen=True)
class MicroBatch:
    """Padded rows that go through the model at once."""

    rows: Sequence[int]
    """Indices of the rows."""
    input_ids: torch.Tensor
    """``(sequences, length)``, int64."""
    supervised: torch.Tensor
    """``(sequences, length)``, bool: tokens in the loss."""
    most_shared: int | None = None
    """Maximum length in tokens of a shared prefix that is computed once; None for no limit. See
    :mod:`core.worker.data.packing`."""
    host: HostBatch | None = None
    """The batch on the host, if the device is a GPU."""


def split_window(
    window: Sequence[int], lengths: Sequence[int], token_budget: int, max_rows: int | None = None
) -> list[list[int]]:
    """Cut a step's rows into micro-batches.

    Args:
        window: Row indices.
        lengths: Tokens of each row of the data.
        token_budget: Token budget of a micro-batch, padding included; a single longer row is allowed.
        max_rows: Maximum rows of a micro-batch.

    Returns:
        Lists of row indices, longest rows first, so that out-of-memory errors show at once.
    """
    ordered = sorted(window, key=lambda row: (-lengths[row], row))
    cut: list[list[int]] = []
    for row in ordered:
        if cut:
            width = padded_length(lengths[cut[-1][0]])
            fits = (len(cut[-1]) + 1) * width <= token_budget
            if fits and (max_rows is None or len(cut[-1]) < max_rows):
                cut[-1].append(row)
                continue
        cut.append([row])
    return cut


def largest_micro_batch(
    lengths: Sequence[int], batch_size: int, token_budget: int, max_rows: int | None = None, *, shared: int = 0
) -> list[int]:
    """The micro-batch with most tokens, padding included, that the data can produce; used by the rehearsal.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows in an optimizer step.
        token_budget: Token budget of a micro-batch.
        max_rows: Maximum rows of a micro-batch.
        shared: Length in tokens of the prefix of all rows, which is computed once.
    """
    longest = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start, rows, _ = largest_shape(length_runs(lengths), batch_size, token_budget, max_rows, shared=shared)
    return longest[start : start + rows]


def collate(rows: Sequence[TokenizedRow], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the right into one batch.

    Returns:
        ``input_ids`` ``(rows, length)`` int64 and ``supervised`` ``(rows, length)`` bool, on the device.
    """
    padded = pad(rows, pad_id)
    return upload(padded.input_ids, device), upload(padded.supervised, device)


def make_micro_batch(
    rows: Sequence[int],
    sequences: Sequence[TokenizedRow],
    pad_id: int,
    device: torch.device,
    most_shared: int | None = None,
) -> MicroBatch:
    """Pad the sequences of some rows into a micro-batch. A GPU receives it while it still computes the previous one.

    Args:
        rows: Indices of the rows.
        sequences: Their sequences.
        pad_id: The token of padding.
        device: Target device.
        most_shared: See :class:`MicroBatch`.
    """
    host = pad(sequences, pad_id)
    ids, supervised = upload(host.input_ids, device), upload(host.supervised, device)
    return MicroBatch(rows, ids, supervised, most_shared, None if device.type == "cpu" else host)


def pad(rows: Sequence[TokenizedRow], pad_id: int) -> HostBatch:
    """Pad rows on the right into one batch."""
    width = padded_length(max(len(row) for row in rows))
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    supervised = np.zeros((len(rows), width), dtype=np.bool_)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = row.input_ids
        supervised[place, : len(row)] = row.supervised
    return HostBatch(input_ids, supervised)


def upload(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device. A GPU copies it asynchronously from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def supervised_count(row: TokenizedRow) -> int:
    """Number of tokens of a row in the loss: supervised tokens except a first token, which nothing predicts; for a
    pair, of both answers."""
    return sum(int(sequence.supervised[1:].sum()) for sequence in row.sequences)


def fingerprint(rows: Sequence[TokenizedRow], excluded: Collection[int] = ()) -> str:
    """SHA-256 of all tokens, masks and labels in order, to check that a resumed run sees the same data.

    Args:
        rows: The rows.
        excluded: Indices of those that are left out of training.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row_bytes(row))
    if excluded:
        digest.update(f"excluded {sorted(excluded)}".encode())
    return digest.hexdigest()


def row_bytes(row: TokenizedRow) -> bytes:
    """Tokens, mask and label of a row, as bytes."""
    parts = list[bytes]()
    for sequence in row.sequences:
        parts += (
            len(sequence).to_bytes(8, "little"),
            sequence.input_ids.astype("<i4").tobytes(),
            sequence.supervised.tobytes(),
        )
    if row.label is not None:
        parts.append(bytes([row.label]))
    return b"".join(parts)

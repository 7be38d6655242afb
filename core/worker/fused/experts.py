"""Grouped products of a mixture's experts: rows sorted by expert, multiplied by their expert's matrix without a loop.

Experts with rows come in blocks of as many as are dequantized together (:func:`core.memory.sizes.experts_at_once`).
Each block is one grouped product: torch's kernel where the card has it, else batched products over padded groups. The
ends of the groups are read from the device once per layer.

torch's ``grouped_mm`` is a bf16 kernel on cards of compute capability 9 and 10 only. On all others, consumer cards
included, it loops over the groups (pytorch/pytorch#161407, issue 186620); padded groups replace it here.

The arithmetic is that of the loop in :mod:`core.worker.model.experts_implementation`, which a CPU still uses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

#: Major compute capabilities of NVIDIA cards with torch's grouped kernel.
KERNEL_CAPABILITIES = (9, 10)
#: Alignment in bytes of the rows of the kernel's matrices.
_ALIGNMENT = 16
#: Rows that cost as much as copying a matrix, which a second round of padded groups needs; estimated from the rates
#: of an RTX 4090 (350) and an RTX 3090 (170).
_COPY_ROWS = 256
#: Candidate lengths of padded groups, as multiples of the average.
_LENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)


@dataclass(frozen=True, eq=False)
class Offsets:
    """Offsets at which the groups of rows end.

    Args:
        host: End of each expert's rows.
        device: Device of the rows.
    """

    host: Sequence[int]
    device: torch.device

    @functools.cached_property
    def ends(self) -> torch.Tensor:
        """The ends on the device, ``(experts,)``, int32."""
        return torch.tensor(self.host, dtype=torch.int32, device=self.device)

    @functools.cached_property
    def counts(self) -> list[int]:
        """Rows of each expert."""
        return [end - begin for begin, end in zip([0, *self.host[:-1]], self.host, strict=True)]

    @functools.cached_property
    def touched(self) -> list[int]:
        """Experts that have rows, in order."""
        return [number for number, count in enumerate(self.counts) if count]

    @functools.cached_property
    def _parts(self) -> dict[tuple[int, ...], Offsets]:
        return {}

    def blocks(self, at_once: int) -> Iterator[list[int]]:
        """Experts with rows, in blocks of at most ``at_once``; the rows of a block are contiguous.

        Args:
            at_once: Most experts of a block.
        """
        for first in range(0, len(self.touched), at_once):
            yield self.touched[first : first + at_once]

    def rows(self, block: Sequence[int]) -> slice:
        """The rows of a block of experts."""
        return slice(self.host[block[0]] - self.counts[block[0]], self.host[block[-1]])

    def part(self, block: Sequence[int]) -> Offsets:
        """The offsets of a block of experts, counted from its own first row; cached, since both matrices and the
        backward pass ask for them.
        """
        key = tuple(block)
        if key not in self._parts:
            begin = self.rows(block).start
            self._parts[key] = Offsets([self.host[number] - begin for number in block], self.device)
        return self._parts[key]

    @functools.cached_property
    def rounds(self) -> list[Round]:
        """Rounds of padded groups; see :func:`plan_rounds`."""
        found, taken = [], [0] * len(self.counts)
        for groups, length in plan_rounds(self.counts):
            begin = [self.host[group] - self.counts[group] + taken[group] for group in groups]
            left = [self.counts[group] - taken[group] for group in groups]
            found.append(_round(groups, begin, left, length, self.device, whole=len(groups) == len(self.counts)))
            for group in groups:
                taken[group] += length
        return found


@dataclass(frozen=True)
class Round:
    """A round of equally long groups.

    Args:
        groups: Groups of the round; None for all.
        index: Their rows, ``(groups, length)``; padded places have the last row of their group.
        is_row: True where a place is not padding.
    """

    groups: torch.Tensor | None
    index: torch.Tensor
    is_row: torch.Tensor


def as_index(block: Sequence[int]) -> slice | list[int]:
    """Experts as an index: a slice where they are contiguous, which avoids a copy."""
    follow = block[-1] - block[0] == len(block) - 1
    return slice(block[0], block[-1] + 1) if follow else list(block)


def grouped_product(
    rows: torch.Tensor,
    offsets: Offsets,
    block: Callable[[Sequence[int]], torch.Tensor],
    at_once: int,
    width: int,
    *,
    transpose: bool,
) -> torch.Tensor:
    """Rows times the matrices of their experts.

    Args:
        rows: ``(rows, inputs)``, sorted by expert.
        offsets: Where each expert's rows end.
        block: Returns the matrices of the given experts, ``(experts, a, b)``, in the rows' dtype.
        at_once: Most experts that ``block`` is called with.
        width: Outputs.
        transpose: Multiply by the transposed matrices: ``inputs`` is then b, else a.

    Returns:
        ``(rows, outputs)``.
    """
    found = rows.new_empty((len(rows), width))
    for experts in offsets.blocks(at_once):
        matrices = block(experts)
        part = offsets.rows(experts)
        multiply(rows[part], matrices.transpose(1, 2) if transpose else matrices, offsets.part(experts), found[part])
    return found


def multiply(
    rows: torch.Tensor, matrices: torch.Tensor, offsets: Offsets, into: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows times the matrix of their group.

    Args:
        rows: ``(rows, inputs)``.
        matrices: ``(groups, inputs, outputs)``, in any order of strides.
        offsets: Where each group's rows end.
        into: Where the result goes; None for a new tensor.

    Returns:
        ``(rows, outputs)``.
    """
    found = rows.new_empty((len(rows), matrices.shape[2])) if into is None else into
    if len(rows) and takes_kernel(rows, matrices):
        return found.copy_(_kernel(rows, matrices, offsets.ends))
    for one in offsets.rounds:
        product = torch.bmm(rows[one.index], matrices if one.groups is None else matrices[one.groups])
        # A padded place writes its group's last row again, with the same numbers.
        found[one.index.flatten()] = product.flatten(0, 1)
    return found


def multiply_between(left: torch.Tensor, right: torch.Tensor, offsets: Offsets) -> torch.Tensor:
    """Sum over the rows of each group of the products of their numbers: the gradient of a group's matrix.

    Args:
        left: ``(rows, a)``.
        right: ``(rows, b)``.
        offsets: Where each group's rows end.

    Returns:
        ``(groups, a, b)``; zero for a group without rows.
    """
    if len(left) and takes_kernel(left.T, right):
        found = _kernel(left.T, right, offsets.ends)
        counts = offsets.ends.diff(prepend=offsets.ends.new_zeros(1))
        return torch.where((counts > 0).view(-1, 1, 1), found, torch.zeros_like(found))
    found = left.new_zeros((len(offsets.host), left.shape[1], right.shape[1]))
    for one in offsets.rounds:
        padded = left[one.index] * one.is_row.unsqueeze(-1)
        product = torch.bmm(padded.transpose(1, 2), right[one.index])
        if one.groups is None:
            found += product
        else:
            found[one.groups] += product
    return found


def row_experts(offsets: Offsets) -> torch.Tensor:
    """The expert of each row, ``(rows,)``, without a device synchronization."""
    counts = offsets.ends.diff(prepend=offsets.ends.new_zeros(1))
    numbers = torch.arange(len(offsets.host), device=counts.device)
    return torch.repeat_interleave(numbers, counts, output_size=offsets.host[-1])


# Torch's kernel.


def takes_kernel(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True if torch has a grouped kernel for two tensors: on a supporting GPU, in bf16, with aligned rows.

    Args:
        left: ``(rows, inputs)``, or ``(inputs, rows)`` where the sum runs over the rows of a group.
        right: ``(groups, inputs, outputs)``, or ``(rows, outputs)``.
    """
    if not left.is_cuda or left.dtype != torch.bfloat16 or right.dtype != torch.bfloat16:
        return False
    # ROCm has numbers of its own, which begin with 9 and 10 too.
    if torch.version.hip is not None:
        return False
    major, _ = torch.cuda.get_device_capability(left.device)
    return hasattr(torch, "_grouped_mm") and major in KERNEL_CAPABILITIES and is_aligned(left) and is_aligned(right)


def is_aligned(matrix: torch.Tensor) -> bool:
    """True if a tensor has the strides and the address that torch's grouped kernel needs: one of the last two
    dimensions is dense, and the stride of the other is a multiple of 16 bytes.
    """
    rows, columns = matrix.stride()[-2:]
    shape = matrix.shape[-2:]
    if columns == 1 and rows >= max(1, shape[1]):
        apart = rows
    elif rows == 1 and columns >= max(1, shape[0]):
        apart = columns
    else:
        return False
    return apart * matrix.element_size() % _ALIGNMENT == 0 and matrix.data_ptr() % _ALIGNMENT == 0


def _kernel(left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch._grouped_mm(left, right, offs=offsets)
    return made


# Padded groups.


def plan_rounds(counts: Sequence[int]) -> list[tuple[list[int], int]]:
    """Rounds of equally long groups that together cover each row once: the groups of each round, and their length.

    Groups much longer than others continue in a further round where that is cheaper than padding all groups to the
    longest; the copy of their matrices costs as much as :data:`_COPY_ROWS` rows.

    Args:
        counts: Rows of each group.
    """
    left = {group: count for group, count in enumerate(counts) if count}
    found: list[tuple[list[int], int]] = []
    while left:
        sizes = list(left.values())
        longest, average = max(sizes), sum(sizes) / len(sizes)
        length, least = longest, float(len(sizes) * longest)
        for times in _LENGTHS:
            tried = min(int(average * times) + 1, longest)
            rest = [size - tried for size in sizes if size > tried]
            cost = len(sizes) * tried + len(rest) * (max(rest, default=0) + _COPY_ROWS)
            if cost < least:
                length, least = tried, cost
        found.append((list(left), length))
        left = {group: size - length for group, size in left.items() if size > length}
    return found


def _round(
    groups: list[int], begin: list[int], left: list[int], length: int, device: torch.device, *, whole: bool
) -> Round:
    # Only small tensors are transferred; the device makes the large ones.
    starts, sizes = torch.tensor([begin, left], device=device).unsqueeze(-1)
    places = torch.arange(length, device=device).unsqueeze(0)
    index = starts + torch.minimum(places, sizes - 1)
    chosen = None if whole else torch.tensor(groups, device=device)
    return Round(chosen, index, places < sizes)

"""Grouped products of a mixture's experts: rows sorted by expert, times the matrix of their expert, with no loop over
experts.

Experts that have rows come in blocks, as many as are dequantized together (:func:`core.memory.sizes.experts_at_once`),
and each block is one grouped product: torch's kernel where a card has it, else batched products over padded groups. The
ends of the groups are asked of the device once a layer.

torch's ``grouped_mm`` is a kernel in bf16 on cards of compute capability 9 and 10 alone. On others, those of consumers
among them, it is a loop over all groups (pytorch/pytorch#161407, issue 186620), which padded groups replace here.

The arithmetic is that of the loop in :mod:`core.worker.model.experts_implementation`, which stays the way of a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

#: First numbers of the compute capabilities with torch's grouped kernel.
KERNEL_CAPABILITIES = (9, 10)
#: Bytes that the rows of its matrices are multiples of.
_ALIGNMENT = 16
#: Rows that cost as much as the copy of a matrix, which a second round of padded groups needs; estimated from the rates
#: of an RTX 4090 (350) and an RTX 3090 (170).
_COPY_ROWS = 256
#: Lengths of padded groups that are weighed, as multiples of the average.
_LENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)


@dataclass(frozen=True, eq=False)
class Offsets:
    """Where the groups of rows end.

    Args:
        host: End of each expert's rows.
        device: Where the rows are.
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
        """Experts that have rows, in blocks of at most so many, whose rows follow each other.

        Args:
            at_once: Most experts of a block.
        """
        for first in range(0, len(self.touched), at_once):
            yield self.touched[first : first + at_once]

    def rows(self, block: Sequence[int]) -> slice:
        """The rows of a block of experts."""
        return slice(self.host[block[0]] - self.counts[block[0]], self.host[block[-1]])

    def part(self, block: Sequence[int]) -> Offsets:
        """The offsets of a block of experts, counted from its own first row; made once, as both matrices and the
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
        is_row: Whether a place is not padded.
    """

    groups: torch.Tensor | None
    index: torch.Tensor
    is_row: torch.Tensor


def as_index(block: Sequence[int]) -> slice | list[int]:
    """Experts as an index: a slice where they follow each other, which takes no copy."""
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
        block: Gives the matrices of some experts, ``(experts, a, b)``, in the rows' dtype.
        at_once: Most experts that it is asked for.
        width: Outputs.
        transpose: Whether the matrices are transposed before: ``inputs`` are b then, else a.

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
        # A padded place writes its group's last row once more, with the same numbers.
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
    """The expert of each row, ``(rows,)``, without asking the device."""
    counts = offsets.ends.diff(prepend=offsets.ends.new_zeros(1))
    numbers = torch.arange(len(offsets.host), device=counts.device)
    return torch.repeat_interleave(numbers, counts, output_size=offsets.host[-1])


# Torch's kernel.


def takes_kernel(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether torch has a grouped kernel for two tensors: on a GPU that has it, in bf16, with aligned rows.

    Args:
        left: ``(rows, inputs)``, or ``(inputs, rows)`` where the groups are among what is summed over.
        right: ``(groups, inputs, outputs)``, or ``(rows, outputs)``.
    """
    if not left.is_cuda or left.dtype != torch.bfloat16 or right.dtype != torch.bfloat16:
        return False
    major, _ = torch.cuda.get_device_capability(left.device)
    return hasattr(torch, "_grouped_mm") and major in KERNEL_CAPABILITIES and is_aligned(left) and is_aligned(right)


def is_aligned(matrix: torch.Tensor) -> bool:
    """Whether a tensor has the strides and the address that torch's grouped kernel asks for: of the last two dimensions
    one is dense, and the other's steps are multiples of 16 bytes.
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
    """Rounds of equally long groups in which each row comes once: the groups of each, and their length.

    Groups that are much longer than others are taken in a second round, and so on, where that is cheaper than to pad
    all of them to the longest; it needs a copy of their matrices, which costs as much as :data:`_COPY_ROWS` rows.

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
    # Small tensors go to the device, which makes the large ones.
    starts, sizes = torch.tensor([begin, left], device=device).unsqueeze(-1)
    places = torch.arange(length, device=device).unsqueeze(0)
    index = starts + torch.minimum(places, sizes - 1)
    chosen = None if whole else torch.tensor(groups, device=device)
    return Round(chosen, index, places < sizes)

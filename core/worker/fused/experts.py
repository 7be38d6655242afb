"""Grouped products of a mixture's experts: rows sorted by expert, times the matrix of their expert, with no loop over
experts.

Experts come in blocks, as many as are dequantized together (:func:`core.memory.sizes.experts_at_once`), and each block
is one grouped product: torch's kernel (``grouped_mm``, bf16, from compute capability 8.0 on) where it takes the dtype
and the shapes, else batched products over padded groups. The ends of the groups are asked of the device once a layer.

The arithmetic is that of the loop in :mod:`core.worker.model.experts`, which stays the way of a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: First compute capability of torch's grouped kernel.
KERNEL_CAPABILITY = (8, 0)
#: Bytes that the rows of its matrices are multiples of.
_ALIGNMENT = 16
#: Fewest rows of a padded group, and the most as a multiple of the average.
_LEAST_ROWS, _MOST_SHARE = 16, 2


@dataclass(frozen=True)
class Offsets:
    """Where the groups of rows end.

    Args:
        device: End of each expert's rows, ``(experts,)``, int32, on the device.
        host: The same, on the host.
    """

    device: torch.Tensor
    host: Sequence[int]

    def begin(self, expert: int) -> int:
        """First row of an expert."""
        return self.host[expert - 1] if expert else 0

    def blocks(self, at_once: int) -> Iterator[tuple[int, int]]:
        """First and last expert, exclusive, of blocks of at most so many; those without rows are left out at both ends.

        Args:
            at_once: Most experts of a block.
        """
        first, experts = 0, len(self.host)
        while first < experts:
            last = min(first + at_once, experts)
            while first < last and self.host[first] == self.begin(first):
                first += 1
            if first == last:
                continue
            last = min(first + at_once, experts)
            while self.host[last - 1] == self.begin(last - 1):
                last -= 1
            yield first, last
            first = last

    def part(self, first: int, last: int) -> Offsets:
        """Those of a block of experts, counted from its own first row."""
        begin = self.begin(first)
        return Offsets(self.device[first:last] - begin, [end - begin for end in self.host[first:last]])


def grouped_product(
    rows: torch.Tensor, offsets: Offsets, block: Callable[[int, int], torch.Tensor], at_once: int, *, transpose: bool
) -> torch.Tensor:
    """Rows times the matrices of their experts.

    Args:
        rows: ``(rows, inputs)``, sorted by expert.
        offsets: Where each expert's rows end.
        block: Gives the matrices of experts from a first to a last one, exclusive: ``(experts, a, b)`` in the rows'
            dtype.
        at_once: Most experts that it is asked for.
        transpose: Whether the matrices are transposed before: ``inputs`` are b then, else a.

    Returns:
        ``(rows, outputs)``.
    """
    found: torch.Tensor | None = None
    for first, last in offsets.blocks(at_once):
        matrices = block(first, last)
        matrices = matrices.transpose(1, 2) if transpose else matrices
        begin, end = offsets.begin(first), offsets.host[last - 1]
        if found is None and begin == 0 and end == len(rows):
            return multiply(rows, matrices, offsets.part(first, last))
        if found is None:
            found = rows.new_empty((len(rows), matrices.shape[2]))
        found[begin:end] = multiply(rows[begin:end], matrices, offsets.part(first, last))
    if found is None:
        width = block(0, 1).shape[1 if transpose else 2]
        return rows.new_zeros((len(rows), width))
    return found


def multiply(rows: torch.Tensor, matrices: torch.Tensor, offsets: Offsets) -> torch.Tensor:
    """Rows times the matrix of their group.

    Args:
        rows: ``(rows, inputs)``.
        matrices: ``(groups, inputs, outputs)``, in any order of strides.
        offsets: Where each group's rows end.

    Returns:
        ``(rows, outputs)``.
    """
    if takes_kernel(rows, matrices):
        return _kernel(rows, matrices, offsets.device)
    found = rows.new_empty((len(rows), matrices.shape[2]))
    for groups, index, kept, target in _padded(offsets.host, rows.device):
        product = torch.bmm(rows[index], matrices[groups])
        found[target] = product.flatten(0, 1)[kept]
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
        found = _kernel(left.T, right, offsets.device)
        counts = offsets.device.diff(prepend=offsets.device.new_zeros(1))
        return torch.where((counts > 0).view(-1, 1, 1), found, torch.zeros_like(found))
    found = left.new_zeros((len(offsets.host), left.shape[1], right.shape[1]))
    for groups, index, kept, _ in _padded(offsets.host, left.device):
        there = left.new_zeros(index.numel())
        there[kept] = 1
        padded = left[index] * there.view(*index.shape, 1)
        found[groups] += torch.bmm(padded.transpose(1, 2), right[index])
    return found


def row_experts(offsets: Offsets) -> torch.Tensor:
    """The expert of each row, ``(rows,)``, without asking the device."""
    counts = offsets.device.diff(prepend=offsets.device.new_zeros(1))
    numbers = torch.arange(len(offsets.host), device=counts.device)
    return torch.repeat_interleave(numbers, counts, output_size=offsets.host[-1])


# Torch's kernel.


def takes_kernel(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether torch's grouped kernel takes two tensors: on a GPU that has it, in bf16, with aligned rows.

    Args:
        left: ``(rows, inputs)``, or ``(inputs, rows)`` where the groups are among what is summed over.
        right: ``(groups, inputs, outputs)``, or ``(rows, outputs)``.
    """
    if not left.is_cuda or left.dtype != torch.bfloat16 or right.dtype != torch.bfloat16:
        return False
    if not hasattr(torch, "_grouped_mm") or torch.cuda.get_device_capability(left.device) < KERNEL_CAPABILITY:
        return False
    return is_aligned(left) and is_aligned(right)


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


def _padded(ends: Sequence[int], device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Rounds of equally long groups, in which each row comes once.

    A group that is much longer than the average is taken in several rounds, so that one expert that everything is sent
    to does not make all others as long.

    Args:
        ends: Where each group's rows end.
        device: Of the indices.

    Yields:
        Groups of the round, ``(groups,)``; their rows, ``(groups, length)``, where padded places have a group's first
        row; places of the others among them all; and the rows that these are.
    """
    stops = torch.tensor(ends)
    starts = torch.cat([stops.new_zeros(1), stops[:-1]])
    groups = (stops > starts).nonzero().flatten()
    if not len(groups):
        return
    average = -(-int(stops[-1]) // len(groups))
    length = max(_LEAST_ROWS, _MOST_SHARE * average)
    while len(groups):
        begin, left = starts[groups], stops[groups] - starts[groups]
        longest = min(length, int(left.max()))
        places = torch.arange(longest).unsqueeze(0)
        is_row = places < left.unsqueeze(1)
        index = torch.where(is_row, begin.unsqueeze(1) + places, begin.unsqueeze(1))
        kept = is_row.flatten().nonzero().flatten()
        target = index.flatten()[kept]
        yield tuple(tensor.to(device) for tensor in (groups, index, kept, target))
        starts[groups] += longest
        groups = groups[left > longest]

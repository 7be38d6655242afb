"""Grouped products of a mixture's experts: rows sorted by expert, multiplied by their expert's matrix without a loop.

Experts with rows come in blocks of as many as are dequantized together (:func:`core.memory.sizes.experts_at_once`).
Each block is one grouped product: torch's kernel where the card has it, else the kernel of
:mod:`core.worker.fused.triton.experts`, else batched products over padded groups. The ends of the groups are read from
the device once a layer, and what the products need of them goes back in one copy that nothing waits for.

torch's ``grouped_mm`` is a bf16 kernel on cards of compute capability 9 and 10 only. On all others, consumer cards
included, it loops over the groups (pytorch/pytorch#161407, issue 186620).

The arithmetic is that of the loop in :mod:`core.worker.model.experts_implementation`, which a CPU still uses.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

#: Major compute capabilities of NVIDIA cards with torch's grouped kernel.
KERNEL_CAPABILITIES = (9, 10)
#: Alignment in bytes of the rows of the kernel's matrices.
_ALIGNMENT = 16
#: Most rows of a tile; an expert of a mixture has about 128 in a micro-batch of 2,048 tokens.
TILE = 64
#: Rows that cost as much as copying a matrix, which a second round of padded groups needs; estimated from the rates
#: of an RTX 4090 (350) and an RTX 3090 (170).
_COPY_ROWS = 256
#: Candidate lengths of padded groups, as multiples of the average.
_LENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)


@dataclass(frozen=True, eq=False)
class Block:
    """Experts with rows, in order, whose matrices are there together; their rows follow each other.

    Args:
        numbers: The experts.
        first: Number of experts with rows before them.
        rows: Their rows.
        index: The experts as an index on the device: a slice where their numbers follow each other, which avoids a
            copy.
    """

    numbers: Sequence[int]
    first: int
    rows: slice
    index: slice | torch.Tensor


@dataclass(frozen=True)
class Tiles:
    """Rows of the groups, cut into tiles of at most :data:`TILE` rows of one expert.

    Args:
        table: For each tile the expert, its place among the experts with rows, the first row, and the end of the
            expert's rows: ``(tiles, 4)``, int64, on the device.
        before: Tiles before those of each expert with rows, and all.
    """

    table: torch.Tensor
    before: Sequence[int]


@dataclass(frozen=True, eq=False)
class Offsets:
    """Offsets at which the groups of rows end.

    Args:
        host: End of each expert's rows.
        ends: The same on the device, ``(experts,)``, int32.
    """

    host: Sequence[int]
    ends: torch.Tensor

    @functools.cached_property
    def counts(self) -> list[int]:
        """Rows of each expert."""
        return [end - begin for begin, end in zip([0, *self.host[:-1]], self.host, strict=True)]

    @functools.cached_property
    def touched(self) -> list[int]:
        """Experts that have rows, in order."""
        return [number for number, count in enumerate(self.counts) if count]

    def blocks(self, at_once: int) -> Iterator[Block]:
        """Experts with rows, in blocks of at most ``at_once``.

        Args:
            at_once: Most experts of a block.
        """
        for first in range(0, len(self.touched), at_once):
            numbers = self.touched[first : first + at_once]
            rows = slice(self.host[numbers[0]] - self.counts[numbers[0]], self.host[numbers[-1]])
            follow = numbers[-1] - numbers[0] == len(numbers) - 1
            index = slice(numbers[0], numbers[-1] + 1) if follow else self._placed[0][first : first + len(numbers)]
            yield Block(numbers, first, rows, index)

    @functools.cached_property
    def tiles(self) -> Tiles:
        """The tiles of all rows."""
        return self._placed[1]

    @functools.cached_property
    def _placed(self) -> tuple[torch.Tensor, Tiles]:
        """The experts with rows, and the tiles, in one upload."""
        rows, before = [], [0]
        for place, number in enumerate(self.touched):
            end = self.host[number]
            for begin in range(end - self.counts[number], end, TILE):
                rows += [number, place, begin, end]
            before.append(len(rows) // 4)
        placed = _upload([*self.touched, *rows], self.ends.device)
        numbers, table = torch.split(placed, [len(self.touched), len(rows)])
        return numbers, Tiles(table.view(-1, 4), before)

    @functools.cached_property
    def rounds(self) -> list[Round]:
        """Rounds of padded groups; see :func:`plan_rounds`."""
        taken = [0] * len(self.counts)
        place = {number: place for place, number in enumerate(self.touched)}
        plan = plan_rounds(self.counts)
        values: list[int] = []
        for groups, length in plan:
            values += groups
            values += [place[group] for group in groups]
            values += [self.host[group] - self.counts[group] + taken[group] for group in groups]
            values += [self.counts[group] - taken[group] for group in groups]
            for group in groups:
                taken[group] += length
        # Only small tensors are transferred; the device makes the large ones.
        parts = torch.split(_upload(values, self.ends.device), [4 * len(groups) for groups, _ in plan])
        return [
            _round([place[group] for group in groups], part.view(4, -1), length)
            for (groups, length), part in zip(plan, parts, strict=True)
        ]


@dataclass(frozen=True)
class Round:
    """A round of equally long groups.

    Args:
        host: Places of its groups among the experts with rows, in order.
        places: The same on the device.
        experts: Their experts, on the device.
        index: Their rows, ``(groups, length)``; padded places have the last row of their group.
        is_row: True where a place is not padding.
    """

    host: Sequence[int]
    places: torch.Tensor
    experts: torch.Tensor
    index: torch.Tensor
    is_row: torch.Tensor

    def part(self, block: Block | None) -> slice:
        """The groups of the round that are in a block; all groups without one."""
        if block is None:
            return slice(0, len(self.host))
        last = block.first + len(block.numbers)
        return slice(bisect.bisect_left(self.host, block.first), bisect.bisect_left(self.host, last))


class GroupedProducts:
    """Grouped products as batched products over padded groups, which every device has."""

    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, offsets: Offsets, block: Block | None, into: torch.Tensor
    ) -> None:
        """Write rows times the matrix of their expert.

        Args:
            rows: ``(rows, inputs)``, sorted by expert.
            matrices: ``(experts, inputs, outputs)``, in any order of strides.
            offsets: Where each expert's rows end.
            block: The experts whose matrices are given, and whose rows are multiplied; None for all.
            into: Where the result goes: ``(rows, outputs)``.
        """
        for one in offsets.rounds:
            part = one.part(block)
            if part.start == part.stop:
                continue
            if part.stop - part.start < len(matrices):
                chosen = one.experts[part] if block is None else one.places[part] - block.first
                product = torch.bmm(rows[one.index[part]], matrices[chosen])
            else:
                product = torch.bmm(rows[one.index[part]], matrices)
            # A padded place writes its group's last row again, with the same numbers.
            into[one.index[part].flatten()] = product.flatten(0, 1)

    def multiply_between(self, left: torch.Tensor, right: torch.Tensor, offsets: Offsets) -> torch.Tensor:
        """Sum over the rows of each expert of the products of their numbers: the gradient of an expert's matrix.

        Args:
            left: ``(rows, a)``.
            right: ``(rows, b)``.
            offsets: Where each expert's rows end.

        Returns:
            ``(experts, a, b)``; zero for an expert without rows.
        """
        found = left.new_zeros((len(offsets.host), left.shape[1], right.shape[1]))
        for one in offsets.rounds:
            padded = left[one.index] * one.is_row.unsqueeze(-1)
            product = torch.bmm(padded.transpose(1, 2), right[one.index])
            if len(one.host) == len(found):
                found += product
            else:
                found[one.experts] += product
        return found


class UnfilledProducts(GroupedProducts):
    """The memory of the grouped kernel's products without their values, as a measurement needs it."""

    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, offsets: Offsets, block: Block | None, into: torch.Tensor
    ) -> None:
        """As for :class:`GroupedProducts`; nothing is written."""

    def multiply_between(self, left: torch.Tensor, right: torch.Tensor, offsets: Offsets) -> torch.Tensor:
        """As for :class:`GroupedProducts`, without values."""
        return left.new_empty((len(offsets.host), left.shape[1], right.shape[1]))


def grouped_product(
    rows: torch.Tensor,
    offsets: Offsets,
    matrices_of: Callable[[Block], torch.Tensor],
    at_once: int,
    width: int,
    products: GroupedProducts,
    *,
    transpose: bool,
) -> torch.Tensor:
    """Rows times the matrices of their experts, which are made block by block.

    Args:
        rows: ``(rows, inputs)``, sorted by expert.
        offsets: Where each expert's rows end.
        matrices_of: Returns the matrices of the experts of a block, ``(experts, a, b)``, in the rows' dtype.
        at_once: Most experts of a block.
        width: Outputs.
        products: The products where torch has no kernel.
        transpose: Multiply by the transposed matrices: ``inputs`` is then b, else a.

    Returns:
        ``(rows, outputs)``.
    """
    found = rows.new_empty((len(rows), width))
    for block in offsets.blocks(at_once):
        matrices = matrices_of(block)
        _multiply(rows, matrices.transpose(1, 2) if transpose else matrices, offsets, block, products, found)
    return found


def multiply(rows: torch.Tensor, matrices: torch.Tensor, offsets: Offsets, products: GroupedProducts) -> torch.Tensor:
    """Rows times the matrix of their expert.

    Args:
        rows: ``(rows, inputs)``, sorted by expert.
        matrices: Those of all experts, ``(experts, inputs, outputs)``, in any order of strides.
        offsets: Where each expert's rows end.
        products: The products where torch has no kernel.

    Returns:
        ``(rows, outputs)``.
    """
    found = rows.new_empty((len(rows), matrices.shape[2]))
    _multiply(rows, matrices, offsets, None, products, found)
    return found


def _multiply(
    rows: torch.Tensor,
    matrices: torch.Tensor,
    offsets: Offsets,
    block: Block | None,
    products: GroupedProducts,
    into: torch.Tensor,
) -> None:
    if not len(rows):
        return
    if not takes_kernel(rows, matrices):
        products.multiply(rows, matrices, offsets, block, into)
    elif block is None:
        into.copy_(_kernel(rows, matrices, offsets.ends))
    else:
        ends = offsets.ends[block.index] - block.rows.start
        into[block.rows] = _kernel(rows[block.rows], matrices, ends)


def multiply_between(
    left: torch.Tensor, right: torch.Tensor, offsets: Offsets, products: GroupedProducts
) -> torch.Tensor:
    """Sum over the rows of each expert of the products of their numbers: the gradient of an expert's matrix.

    Args:
        left: ``(rows, a)``.
        right: ``(rows, b)``.
        offsets: Where each expert's rows end.
        products: The products where torch has no kernel.

    Returns:
        ``(experts, a, b)``; zero for an expert without rows.
    """
    if not len(left) or not takes_kernel(left.T, right):
        return products.multiply_between(left, right, offsets)
    found = _kernel(left.T, right, offsets.ends)
    counts = offsets.ends.diff(prepend=offsets.ends.new_zeros(1))
    return torch.where((counts > 0).view(-1, 1, 1), found, torch.zeros_like(found))


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


def _round(host: Sequence[int], table: torch.Tensor, length: int) -> Round:
    """A round of padded groups.

    Args:
        host: Places of its groups.
        table: Their experts, places, first rows and numbers of rows left: ``(4, groups)``.
        length: Length of a group.
    """
    experts, places, begin, left = table
    along = torch.arange(length, device=table.device).unsqueeze(0)
    index = begin.unsqueeze(1) + torch.minimum(along, left.unsqueeze(1) - 1)
    return Round(host, places, experts, index, along < left.unsqueeze(1))


def _upload(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """Numbers on the device, int64; the host does not wait for the copy."""
    host = torch.tensor(values, dtype=torch.int64)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)

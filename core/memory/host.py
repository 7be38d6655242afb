"""Host memory that optimizer states take beside a GPU: while they are paged, and while a checkpoint is written."""

from __future__ import annotations

from collections.abc import Iterable

from core.memory.sizes import optimizer_bytes

#: Optimizers that keep one state as large as the parameter; the others keep two.
_SINGLE = ("lion_8bit",)


def states_host_bytes(kind: str, tensors: Iterable[tuple[int, int, int]]) -> int:
    """Most host memory for the optimizer states of a run on a GPU.

    Paged states are in the host's memory where the GPU's does not suffice, all of them at worst. A checkpoint is
    written tensor by tensor: one state at a time is copied to the host, but for a paged one, which is read where it is.

    Args:
        kind: As ``train.optimizer``.
        tensors: Rows, columns and number of the trained tensors of each size.
    """
    sizes = [(optimizer_bytes(kind, rows * columns, columns), count) for rows, columns, count in tensors]
    if kind.startswith("paged_"):
        return sum(size * count for size, count in sizes)
    return max((size for size, count in sizes if count), default=0) // (1 if kind in _SINGLE else 2)

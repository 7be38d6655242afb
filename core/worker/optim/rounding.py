"""Adding small updates to bf16 weights without losing them.

bf16 has 8 significant bits, so an update below 1/256 of a weight would always be rounded away. Rounding up or down by
chance, with the probability of the distance, keeps the update in expectation (Gupta et al., 2015, arXiv 1502.02551;
for bf16 training Zamirai et al., 2020, arXiv 2010.06192).

This is the plain way, of the CPU above all; :mod:`core.worker.optim.rounding_kernels` does it in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Elements that are added at a time, so that their fp32 copies stay small.
SLICE = 1 << 24
#: The bits of an fp32 that a bf16 does not have.
_LOST_BITS = 16


@torch.no_grad()
def add_update(weights: torch.Tensor, update: torch.Tensor, *, keep: float = 1.0) -> None:
    """``weights = keep * weights + update``, in place; bf16 weights are rounded stochastically.

    Draws from the device's default random generator when the weights are bf16.

    Args:
        weights: Contiguous, bf16 or fp32.
        update: Of the same shape, any floating dtype.
        keep: What weight decay leaves of the weights.
    """
    for _ in add_slices(weights, update, keep=keep):
        pass


@torch.no_grad()
def add_slices(weights: torch.Tensor, update: torch.Tensor, *, keep: float = 1.0, begin: int = 0) -> Iterator[int]:
    """As :func:`add_update`, slice by slice, so that it can go on where memory ran out.

    Args:
        weights: As there.
        update: As there.
        keep: As there.
        begin: Elements that are done already.

    Yields:
        Elements that are done now.
    """
    flat, change = weights.view(-1), update.reshape(-1)
    for start in range(begin, flat.numel(), SLICE):
        part = flat[start : start + SLICE]
        # In bf16 a slice is written by the last call alone; in fp32 in place, which takes no memory that could lack.
        exact = part.float()
        if keep != 1.0:
            exact.mul_(keep)
        exact.add_(change[start : start + SLICE])
        part.copy_(round_stochastically(exact) if weights.dtype == torch.bfloat16 else exact)
        yield start + part.numel()


def round_stochastically(exact: torch.Tensor) -> torch.Tensor:
    """Round fp32 values to neighbors that bf16 has: up with the probability of how far up the value lies.

    Args:
        exact: fp32; overwritten. Values that are not finite stay as they are.

    Returns:
        The same tensor, every value exact in bf16.
    """
    bits = exact.view(torch.int32)
    # For both signs a larger magnitude has larger bits, so that the carry of the noise rounds away from zero.
    noise = torch.empty_like(bits).random_(0, 1 << _LOST_BITS)
    # What is infinite has no bits that it could carry from; what is no number may.
    noise.masked_fill_(exact.isnan(), 0)
    bits.add_(noise).bitwise_and_(-(1 << _LOST_BITS))
    return exact

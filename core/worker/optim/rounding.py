"""Adding small updates to bf16 weights without losing them.

bf16 has 8 significant bits, so an update below 1/256 of a weight would always be rounded away. Stochastic rounding, up
or down with probability by distance, keeps the update in expectation (Gupta et al., 2015, arXiv 1502.02551; for bf16
training Zamirai et al., 2020, arXiv 2010.06192).

This is the plain implementation, mainly for the CPU; :mod:`core.worker.optim.rounding_kernels` does it in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from core.text import one_line

#: Number of elements per slice, so that fp32 copies stay small.
SLICE = 1 << 24
#: Low bits of an fp32 value that bf16 drops.
_LOST_BITS = 16


@torch.no_grad()
def add_update(weights: torch.Tensor, update: torch.Tensor, *, keep: float = 1.0) -> None:
    """``weights = keep * weights + update``, in place; bf16 weights are rounded stochastically.

    Draws from the device's default random generator when the weights are bf16.

    Args:
        weights: Contiguous, bf16 or fp32.
        update: Of the same shape, any floating dtype.
        keep: Factor on the weights, for weight decay.
    """
    for _ in add_slices(weights, update, keep=keep):
        pass


@torch.no_grad()
def add_slices(weights: torch.Tensor, update: torch.Tensor, *, keep: float = 1.0, begin: int = 0) -> Iterator[int]:
    """As :func:`add_update`, slice by slice, so that it can continue after running out of memory.

    Args:
        weights: As there.
        update: As there.
        keep: As there.
        begin: Number of elements already done.

    Yields:
        Number of elements done so far.
    """
    flat, change = weights.view(-1), update.reshape(-1)
    for start in range(begin, flat.numel(), SLICE):
        part = flat[start : start + SLICE]
        # A bf16 slice is only written by the last call; an fp32 slice is changed in place, without allocations.
        exact = part.float()
        if keep != 1.0:
            exact.mul_(keep)
        exact.add_(change[start : start + SLICE])
        part.copy_(round_stochastically(exact) if weights.dtype == torch.bfloat16 else exact)
        yield start + part.numel()


def round_stochastically(exact: torch.Tensor) -> torch.Tensor:
    """Round fp32 values to bf16 neighbors: up with a probability by distance.

    Args:
        exact: fp32; overwritten. Non-finite values stay as they are.

    Returns:
        The same tensor, with every value representable in bf16.
    """
    bits = exact.view(torch.int32)
    # For both signs a larger magnitude has larger bits, so the carry rounds away from zero.
    noise = torch.empty_like(bits).random_(0, 1 << _LOST_BITS)
    # Infinities have no low bits to carry from; NaNs may.
    noise.masked_fill_(exact.isnan(), 0)
    bits.add_(noise).bitwise_and_(-(1 << _LOST_BITS))
    return exact


#: Number of roundings to average.
COUNT = 1 << 20
#: Maximum bias of the average, in units of the neighbor distance.
BIAS = 1e-3
#: Update added to 1.0, in units of the neighbor distance.
SHARE = 2.0**-5
#: Distance from 1.0 to its upper neighbor in bf16.
SPACING = 2.0**-7


class Kernels(Protocol):
    """Kernels, as in :mod:`core.worker.optim.rounding_kernels`."""

    def add_update(
        self, weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: torch.Tensor | None = None
    ) -> None:
        """Add an update to weights, rounded stochastically to bf16, unless a flag on the device is 0."""

    def clear_unless(self, wanted: torch.Tensor, values: torch.Tensor) -> None:
        """Set values to zero if a flag on the device is 0."""


def choose_kernels(device: torch.device, notice: Callable[[str, str, str], None]) -> Kernels | None:
    """The kernels, if the device is a GPU and they pass the trial.

    Args:
        device: Device of the run.
        notice: Receives the reason if a GPU gets none: ``notice(code, message, hint)``.
    """
    if device.type != "cuda":
        return None
    found: list[Kernels] = []

    def trial() -> str:
        from core.worker.optim import rounding_kernels

        found.append(rounding_kernels)
        return find_fault(rounding_kernels, device)

    if fault := fault_of(trial):
        message = f"Weights are rounded by torch's own operations: the kernel for it is not used, as {fault}."
        notice("rounding", message, "It computes as well, and takes some more time in each step.")
        return None
    return found[0]


def fault_of(trial: Callable[[], str]) -> str:
    """The fault that a trial of kernels finds, an exception among them; empty if they can be used.

    Args:
        trial: Imports the kernels and tries them.
    """
    try:
        return trial()
    except Exception as error:  # of kernel, compiler or driver; there is a fallback
        return f"it fails with {type(error).__name__}: {one_line((str(error).strip().splitlines() or [''])[0], 200)}"


def find_fault(kernels: Kernels, device: torch.device, count: int = COUNT) -> str:
    """Reason why the kernels cannot be used; empty if they work correctly.

    Args:
        kernels: Kernels to try.
        device: Device to try them on.
        count: Number of roundings to average; with few, the measured bias is inexact.
    """
    ones = torch.ones(count + 3, dtype=torch.bfloat16, device=device)
    kernels.add_update(ones, torch.full_like(ones, SHARE * SPACING, dtype=torch.float32), keep=1.0, seed=1)
    again = torch.ones_like(ones)
    kernels.add_update(again, torch.full_like(ones, SHARE * SPACING, dtype=torch.float32), keep=1.0, seed=2)
    added = (ones.float() - 1.0) / SPACING
    if not bool(((added == 0) | (added == 1)).all()):
        return "a value became neither of its neighbors"
    bias = abs(float(added.mean()) - SHARE)
    if not bias < BIAS:
        return f"the mean of {count} roundings is off by {bias:.2g} of a distance"
    if bool((ones == again).all()):
        return "two seeds round alike"
    # Every bf16 value must survive a zero update, and an update with flag 0. Values below 1e-38 may become zero.
    every = torch.arange(-(1 << 15), 1 << 15, device=device).to(torch.int16).view(torch.bfloat16)
    numbers = every[(every == 0) | (every.abs() >= torch.finfo(torch.bfloat16).tiny)]
    for flag, update in ((None, 0.0), (torch.zeros((), dtype=torch.int32, device=device), 1.0)):
        weights = numbers.clone()
        kernels.add_update(weights, torch.full_like(weights, update), keep=1.0, seed=3, wanted=flag)
        if not torch.equal(weights, numbers):
            return "values that bf16 has are changed"
    odd = torch.full((5,), float("nan"), dtype=torch.bfloat16, device=device)
    kernels.add_update(odd, torch.zeros_like(odd), keep=1.0, seed=4)
    if not bool(odd.isnan().all()):
        return "what is not a number becomes one"
    plain, change = torch.full((7,), 2.0, device=device), torch.full((7,), 0.5, dtype=torch.bfloat16, device=device)
    for wanted in (1, 0):
        flag = torch.tensor(wanted, dtype=torch.int32, device=device)
        kernels.add_update(plain, change, keep=0.5, seed=5, wanted=flag)
        kernels.clear_unless(flag, change)
        if not bool((plain == 1.5).all()) or not bool((change == 0.5 * wanted).all()):
            return "an update in fp32 goes wrong"
    return ""

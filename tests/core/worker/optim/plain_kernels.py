"""The rounding kernels in plain torch, for a machine without a card."""

from __future__ import annotations

import torch

from core.worker.optim.rounding import round_stochastically


class PlainKernels:
    """As :mod:`core.worker.optim.rounding_kernels`; the updates are counted."""

    def __init__(self) -> None:
        self.added = 0

    def add_update(
        self, weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: torch.Tensor | None = None
    ) -> None:
        self.added += 1
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        exact = weights.float() * keep + update.float()
        rounded = (round_stochastically(exact) if weights.dtype == torch.bfloat16 else exact).to(weights.dtype)
        torch.set_rng_state(state)
        weights.copy_(rounded if wanted is None else torch.where(wanted.bool(), rounded, weights))

    def clear_unless(self, wanted: torch.Tensor, values: torch.Tensor) -> None:
        values.copy_(torch.where(wanted.bool(), values, 0.0))

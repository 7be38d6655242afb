"""The kernels of updates in plain torch, for a machine without a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def plain_step(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    state: Mapping[str, Any],
    group: Mapping[str, Any],
    *,
    keep: float,
    scale: float,
    seed: int,
    wanted: torch.Tensor | None = None,
) -> None:
    """As :func:`core.worker.optim.adamw_kernels.step`, by bitsandbytes' operator."""
    if wanted is not None and not wanted:
        return
    update = torch.zeros(weights.shape)
    states = [state[f"{name}{moment}"] for name in ("qmap", "absmax") for moment in "12"]
    torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
        "adam",
        gradient.float() * scale,
        update,
        state["state1"],
        state["state2"],
        *group["betas"],
        0.0,
        0.0,
        group["eps"],
        state["step"],
        group["lr"],
        *states,
        0.0,
        1.0,
        False,
    )
    PlainKernels().add_update(weights, update, keep=keep, seed=seed)

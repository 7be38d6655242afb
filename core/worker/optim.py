"""Optimizers by the names the configuration has for them."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch

from core.config.schema import TrainSection


def make_optimizer(
    parameters: list[torch.nn.Parameter], train: TrainSection, *, weight_decay: float | None = None
) -> Any:
    """The optimizer of ``train.optimizer`` over the given parameters (AdamW: Loshchilov and Hutter, 2019).

    The bitsandbytes ones keep 8-bit states in blocks; the paged one moves them to host memory under pressure on CUDA.

    Args:
        parameters: What is trained.
        train: Which optimizer, and its rates.
        weight_decay: Instead of ``train.weight_decay``.
    """
    decay = train.weight_decay if weight_decay is None else weight_decay
    options: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": decay}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    if train.optimizer == "adamw_8bit":
        return bnb.optim.AdamW8bit(parameters, **options)
    return bnb.optim.PagedAdamW8bit(parameters, **options)

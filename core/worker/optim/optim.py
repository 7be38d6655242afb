"""Optimizers, made by the names that the configuration has for them."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from transformers.optimization import Adafactor

from core.config.schema import TrainSection
from core.worker.optim.paged import PagedBuffers


def make_optimizer(
    parameters: list[torch.nn.Parameter] | list[dict[str, Any]],
    train: TrainSection,
    *,
    weight_decay: float | None = None,
    buffers: PagedBuffers | None = None,
) -> Any:
    """The optimizer of ``train.optimizer`` over parameters, or over groups of them.

    AdamW: Loshchilov and Hutter, arXiv 1711.05101. Adafactor: Shazeer and Stern, arXiv 1804.04235. Lion: Chen et al.,
    arXiv 2302.06675. The bitsandbytes ones keep 8-bit states in blocks; the paged one moves them to host memory under
    pressure on CUDA.

    Adafactor is that of transformers: torch's multiplies the rate by each tensor's size, which cannot be switched off
    there, so that matrices that begin at zero would hardly move.

    Args:
        parameters: What is trained.
        train: Which optimizer, and its rates.
        weight_decay: Instead of ``train.weight_decay``.
        buffers: Of paged optimizers: where they get their states; shared by those that follow one another.
    """
    decay = train.weight_decay if weight_decay is None else weight_decay
    options: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": decay}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    if train.optimizer == "adamw_8bit":
        return bnb.optim.AdamW8bit(parameters, **options)
    if train.optimizer == "lion_8bit":
        return bnb.optim.Lion8bit(parameters, **options)
    if train.optimizer == "adafactor":
        return Adafactor(parameters, scale_parameter=False, relative_step=False, warmup_init=False, **options)
    optimizer = bnb.optim.PagedAdamW8bit(parameters, **options)
    optimizer.get_state_buffer = buffers or PagedBuffers()
    return optimizer


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every group of parameters the rate, times the group's own ``lr_ratio`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_ratio", 1.0)

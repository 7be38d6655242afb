"""Optimizers by configuration name, their steps per parameter, and the learning rate.

The ``step`` of bitsandbytes' optimizers waits for the device after each parameter. All kernels and copies of a run are
on one stream, in order, so no wait is needed; the host waits once before it reads paged states, see
:func:`core.worker.optim.paged.settle`.
"""

from __future__ import annotations

import math
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from transformers.optimization import Adafactor

from core.config.schema import TrainSection
from core.worker.optim.paged import PagedBuffers
from core.worker.progress.state import TrainState


def make_optimizer(
    parameters: list[torch.nn.Parameter] | list[dict[str, Any]],
    train: TrainSection,
    *,
    weight_decay: float | None = None,
    buffers: PagedBuffers | None = None,
) -> Any:
    """The optimizer of ``train.optimizer`` over parameters or groups of them.

    AdamW: Loshchilov and Hutter, arXiv 1711.05101. Adafactor: Shazeer and Stern, arXiv 1804.04235. Lion: Chen et al.,
    arXiv 2302.06675. bitsandbytes keeps 8-bit states in blocks; its paged optimizers move them to host memory under
    pressure on CUDA. Adafactor is transformers' version: torch's always multiplies the rate by each tensor's size, so
    matrices that begin at zero would hardly move.

    Args:
        parameters: Trainable parameters, or groups of them.
        train: The optimizer and its rates.
        weight_decay: Instead of ``train.weight_decay``.
        buffers: State buffers of paged optimizers, shared by successive optimizers.
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
    """Set the rate of every parameter group, times the group's own ``lr_ratio`` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_ratio", 1.0)


def is_blockwise(optimizer: Any) -> bool:
    """True for a bitsandbytes optimizer."""
    return isinstance(optimizer, Optimizer8bit)


def allocates(optimizer: Any, device: torch.device) -> bool:
    """True if an update allocates memory once the states exist.

    CUDA kernels write weights and states in place. CPU kernels dequantize the states, change the weights and quantize
    the states into new tensors, so memory can run out in between.
    """
    return not is_blockwise(optimizer) or device.type != "cuda"


def step_parameter(
    optimizer: Any, group: dict[str, Any], parameter: torch.nn.Parameter, places: tuple[int, int] = (0, 0)
) -> None:
    """Step one parameter, creating its states if necessary.

    Args:
        optimizer: A bitsandbytes optimizer.
        group: The parameter's group.
        parameter: A parameter with a gradient.
        places: Index of the group, and of the parameter in it.
    """
    if not optimizer.state.get(parameter):
        optimizer.init_state(group, parameter, *places)
    optimizer.prefetch_state(parameter)
    optimizer.update_step(group, parameter, *places)


def forget_state(optimizer: Any, parameter: torch.nn.Parameter) -> None:
    """Drop the state of a parameter, for any optimizer."""
    state = optimizer.state.pop(parameter, None)
    buffers = getattr(optimizer, "get_state_buffer", None)
    if state and isinstance(buffers, PagedBuffers):
        buffers.give_back(state)


class LearningRate:
    """Learning rate of the next step: the current peak times the schedule's factor, as defined by transformers'
    schedules.

    Args:
        train: Peak, schedule and warm-up.
        state: Current step, and a peak changed while running.
    """

    def __init__(self, train: TrainSection, state: TrainState) -> None:
        self._train = train
        self._state = state
        self._warmup = warmup_steps(train.warmup, state.total_steps)

    def __call__(self) -> float:
        """The rate of the next step."""
        peak = float(self._state.overrides.get("train.learning_rate", self._train.learning_rate))
        return peak * lr_factor(self._train.scheduler, self._state.step, self._warmup, self._state.total_steps)


def warmup_steps(warmup: float, total_steps: int) -> int:
    """``train.warmup`` in steps: a fraction of all steps below 1 (rounded up), a number of steps from 1."""
    return math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)


def lr_factor(scheduler: str, step: int, warmup: int, total_steps: int) -> float:
    """Fraction of the peak learning rate at optimizer step ``step``, counted from 0.

    Args:
        scheduler: ``cosine``, ``linear`` or ``constant``.
        step: The step.
        warmup: Steps of linear warm-up from 0.
        total_steps: Steps of the whole run.
    """
    if step < warmup:
        return step / max(1, warmup)
    if scheduler == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    if scheduler == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

"""Optimizers by their names in the configuration, their steps parameter by parameter, and the learning rate.

The own ``step`` of bitsandbytes' optimizers waits for the device after each parameter. Kernels and copies of a run are
on one stream, in order, so that no wait is needed; the reader of paged states on the host waits once, see
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


def is_blockwise(optimizer: Any) -> bool:
    """True if it is one of bitsandbytes'."""
    return isinstance(optimizer, Optimizer8bit)


def allocates(optimizer: Any, device: torch.device) -> bool:
    """True if an update takes memory once the states are there.

    The kernels of a card write weights and states in place. Those of the CPU dequantize the states, change the weights
    and then quantize the states into new tensors, so that memory can run out in between.
    """
    return not is_blockwise(optimizer) or device.type != "cuda"


def step_parameter(
    optimizer: Any, group: dict[str, Any], parameter: torch.nn.Parameter, places: tuple[int, int] = (0, 0)
) -> None:
    """Step one parameter; its states are made where it has none.

    Args:
        optimizer: One of bitsandbytes'.
        group: The parameter's.
        parameter: With a gradient.
        places: The group's among the groups, and the parameter's in it.
    """
    if not optimizer.state.get(parameter):
        optimizer.init_state(group, parameter, *places)
    optimizer.prefetch_state(parameter)
    optimizer.update_step(group, parameter, *places)


def forget_state(optimizer: Any, parameter: torch.nn.Parameter) -> None:
    """Drop the state of a parameter; of any optimizer."""
    state = optimizer.state.pop(parameter, None)
    buffers = getattr(optimizer, "get_state_buffer", None)
    if state and isinstance(buffers, PagedBuffers):
        buffers.give_back(state)


class LearningRate:
    """The learning rate of the next step: the peak in force, times the schedule's share of it, as the schedules of
    transformers define it.

    Args:
        train: Peak, schedule and warm-up.
        state: The step, and a peak that was set while running.
    """

    def __init__(self, train: TrainSection, state: TrainState) -> None:
        self._train = train
        self._state = state
        self._warmup = warmup_steps(train.warmup, state.total_steps)

    def __call__(self) -> float:
        """The rate of the step after those that are done."""
        peak = float(self._state.overrides.get("train.learning_rate", self._train.learning_rate))
        return peak * lr_factor(self._train.scheduler, self._state.step, self._warmup, self._state.total_steps)


def warmup_steps(warmup: float, total_steps: int) -> int:
    """``train.warmup`` in steps: a share of all steps below 1 (rounded up), a number of steps from 1."""
    return math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)


def lr_factor(scheduler: str, step: int, warmup: int, total_steps: int) -> float:
    """The share of the peak learning rate that optimizer step ``step`` (from 0) uses.

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

"""bitsandbytes' optimizers, stepped parameter by parameter without a wait for the device after each.

Their own ``step`` waits every time. Kernels and copies of a run are on one stream, in order, so that nothing needs it;
whoever lets the host read paged states waits once, see :func:`core.worker.optim.paged.settle`.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.optim.optimizer import Optimizer8bit

from core.worker.optim.paged import PagedBuffers


def is_blockwise(optimizer: Any) -> bool:
    """Whether it is one of bitsandbytes'."""
    return isinstance(optimizer, Optimizer8bit)


def allocates(optimizer: Any, device: torch.device) -> bool:
    """Whether an update takes memory once the states are there.

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

"""Shards of trained tensors: gathered for a checkpoint independent of the number of processes, and cut out of it again.

FSDP2 splits a tensor along its first dimension into equal parts, one per process; the last ones may have fewer rows or
none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from core.worker.optim.update import Update


class Shards:
    """This process's shards of trained tensors, as plain parameters for any optimizer.

    Args:
        trained: FSDP2's parameters by name.
    """

    def __init__(self, trained: Mapping[str, Any]) -> None:
        self._trained = dict(trained)
        self.parameters = {
            name: torch.nn.Parameter(parameter.to_local().detach()) for name, parameter in self._trained.items()
        }

    def take_gradients(self) -> None:
        """Move the gradients of a window, reduced by FSDP2, to the parameters."""
        for name, parameter in self._trained.items():
            gradient, parameter.grad = parameter.grad, None
            self.parameters[name].grad = None if gradient is None else gradient.to_local()

    def rows(self, name: str) -> int:
        """Number of rows of the whole tensor."""
        return int(self._trained[name].shape[0])

    def gather(self, name: str, local: torch.Tensor) -> torch.Tensor | None:
        """A whole tensor, on the host of rank 0; None elsewhere.

        Args:
            name: Name of the sharded parameter.
            local: This process's rows of the parameter, or of its optimizer state.
        """
        return gather_rows(local, self.rows(name))

    def weights(self) -> dict[str, torch.Tensor]:
        """All trained tensors, whole, on the host of rank 0; empty elsewhere. Together."""
        found = {name: self.gather(name, parameter.detach()) for name, parameter in self.parameters.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def own_rows(self, name: str) -> slice:
        """The rows of a tensor that belong to this process."""
        return own_rows(self.rows(name))


class ShardedUpdate:
    """Update of shards, whose states are saved and loaded whole.

    Args:
        update: Updates the shards, with one optimizer per name.
        shards: The shares.
    """

    in_backward = False
    partial = False

    def __init__(self, update: Update, shards: Shards) -> None:
        self._update = update
        self._shards = shards
        self.begin, self.step, self.rehearsal = update.begin, update.step, update.rehearsal

    def clip(self) -> float:
        """Clip by the gradient norm over all processes, which is returned. Together."""
        self._shards.take_gradients()
        return self._update.clip()

    def drop(self) -> None:
        """Drop the gradients, including those not taken yet."""
        self._shards.take_gradients()
        self._update.drop()

    def state_dict(self) -> dict[str, Any]:
        """Optimizer states of every whole tensor by name, in rank 0; empty elsewhere. Together."""
        found = {name: self._gathered(name, state) for name, state in self._update.state_dict().items()}
        return found if dist.get_rank() == 0 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore this process's rows of :meth:`state_dict`."""
        self._update.load_state_dict({name: self._cut(name, saved) for name, saved in state.items()})

    def _gathered(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        shape = self._shards.parameters[name].shape

        def whole(value: Any) -> Any:
            is_cut = isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape == shape
            return self._shards.gather(name, value) if is_cut else value

        return {**state, "state": {at: _mapped(values, whole) for at, values in state["state"].items()}}

    def _cut(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        rows = self._shards.rows(name)

        def part(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            # Copied, because loaded tensors may be memory-mapped.
            return (value[own_rows(rows)] if value.dim() and len(value) == rows else value).clone()

        return {**state, "state": {at: _mapped(values, part) for at, values in state["state"].items()}}


def _mapped(values: dict[str, Any], change: Any) -> dict[str, Any]:
    return {key: change(value) for key, value in values.items()}


def own_rows(rows: int) -> slice:
    """The rows of a tensor that belong to this process."""
    share = -(-rows // dist.get_world_size())
    begin = min(rows, dist.get_rank() * share)
    return slice(begin, min(rows, begin + share))


@torch.no_grad()
def gather_rows(local: torch.Tensor, rows: int) -> torch.Tensor | None:
    """A whole tensor, on the host of rank 0; None elsewhere. Together.

    Args:
        local: This process's rows, see :func:`own_rows`.
        rows: Number of rows of the whole tensor.
    """
    count, rank = dist.get_world_size(), dist.get_rank()
    share = -(-rows // count)
    # Shorter shards are padded; the padding is cut off below.
    sent = torch.zeros((share, *local.shape[1:]), dtype=local.dtype)
    sent[: len(local)].copy_(local)
    # As bytes, because gloo does not support every dtype.
    flat = sent.view(-1).view(torch.uint8)
    if rank:
        dist.gather(flat, None, 0)
        return None
    whole = torch.empty((count * share, *local.shape[1:]), dtype=local.dtype)
    dist.gather(flat, list(whole.view(-1).view(torch.uint8).chunk(count)), 0)
    return whole[:rows]


def whole_state(model: Any) -> dict[str, torch.Tensor]:
    """All parameters of a model, whole, on the host of rank 0; empty elsewhere. Together, with no layer in use."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            whole = gather_rows(parameter.to_local().detach(), int(parameter.shape[0]))
        else:
            whole = parameter.detach().cpu() if dist.get_rank() == 0 else None
        if whole is not None:
            found[name] = whole
    return found

"""Shares of what is trained: gathered for a checkpoint that knows nothing of processes, and taken out of one again.

FSDP2 cuts a tensor along its first dimension into as many parts as there are processes, of equally many rows but for
the last ones, which may have fewer or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from core.worker.optim.update import Update


class Shards:
    """The shares of this process of trained tensors, as plain parameters, which any optimizer can update.

    Args:
        trained: Parameters as FSDP2 keeps them, by name.
    """

    def __init__(self, trained: Mapping[str, Any]) -> None:
        self._trained = dict(trained)
        self.parameters = {
            name: torch.nn.Parameter(parameter.to_local().detach()) for name, parameter in self._trained.items()
        }

    def take_gradients(self) -> None:
        """Give the parameters the gradients of a window, which FSDP2 has summed over the processes."""
        for name, parameter in self._trained.items():
            gradient, parameter.grad = parameter.grad, None
            self.parameters[name].grad = None if gradient is None else gradient.to_local()

    def rows(self, name: str) -> int:
        """Rows of the whole tensor."""
        return int(self._trained[name].shape[0])

    def gather(self, name: str, local: torch.Tensor) -> torch.Tensor | None:
        """A whole tensor on the host of the first process, of which each process has its rows; None elsewhere.

        Args:
            name: The parameter that is cut so.
            local: The rows of this process: of the parameter, or of a state of its optimizer.
        """
        return gather_rows(local, self.rows(name))

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This process's rows of a whole tensor."""
        return whole[own_rows(len(whole))]

    def weights(self) -> dict[str, torch.Tensor]:
        """All trained tensors, whole, on the host of the first process; empty elsewhere. Together."""
        found = {name: self.gather(name, parameter.detach()) for name, parameter in self.parameters.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def own_rows(self, name: str) -> slice:
        """The rows of a tensor that belong to this process."""
        return own_rows(self.rows(name))


class ShardedUpdate:
    """An update of shares, whose states are saved and loaded whole.

    Args:
        update: Updates the parameters of the shares, each with an optimizer of its own by name.
        shards: The shares.
    """

    in_backward = False
    partial = False

    def __init__(self, update: Update, shards: Shards) -> None:
        self._update = update
        self._shards = shards
        self.begin, self.step, self.rehearsal = update.begin, update.step, update.rehearsal

    def clip(self) -> float:
        """Clip by the norm of the gradients of all processes, which is returned. Together."""
        self._shards.take_gradients()
        return self._update.clip()

    def drop(self) -> None:
        """Drop the gradients, those that are not taken yet as well."""
        self._shards.take_gradients()
        self._update.drop()

    def state_dict(self) -> dict[str, Any]:
        """States of every whole tensor's optimizer, by name, in the first process; nothing elsewhere. Together."""
        found = {name: self._gathered(name, state) for name, state in self._update.state_dict().items()}
        return found if dist.get_rank() == 0 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put this process's rows of :meth:`state_dict` back."""
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
            # Copies, as what is read may be a file's memory.
            return (self._shards.part(value) if value.dim() and len(value) == rows else value).clone()

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
    """A whole tensor on the host of the first process; None elsewhere. Together.

    Args:
        local: The rows of this process, as :func:`own_rows`.
        rows: Of the whole.
    """
    count, rank = dist.get_world_size(), dist.get_rank()
    share = -(-rows // count)
    # A process with fewer rows sends some more, which are cut off.
    sent = torch.zeros((share, *local.shape[1:]), dtype=local.dtype)
    sent[: len(local)].copy_(local)
    # As bytes: gloo does not know every dtype.
    flat = sent.view(-1).view(torch.uint8)
    if rank:
        dist.gather(flat, None, 0)
        return None
    whole = torch.empty((count * share, *local.shape[1:]), dtype=local.dtype)
    dist.gather(flat, list(whole.view(-1).view(torch.uint8).chunk(count)), 0)
    return whole[:rows]


def whole_state(model: Any) -> dict[str, torch.Tensor]:
    """All parameters of a model, whole, on the host of the first process; empty elsewhere. Together, with no layer in
    use."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            whole = gather_rows(parameter.to_local().detach(), int(parameter.shape[0]))
        else:
            whole = parameter.detach().cpu() if dist.get_rank() == 0 else None
        if whole is not None:
            found[name] = whole
    return found

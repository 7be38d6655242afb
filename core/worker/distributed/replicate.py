"""Replicated training: every process has the whole model and works on its rows; gradients are reduced once a step.

There is no wrapper around the model, so each process may cut its window, and run it again after memory ran out,
independently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.memory.cards import BUCKET
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.model.safetensors_io import read_tensors
from core.worker.optim.update import Update, WeightUpdate


@dataclass(frozen=True)
class Replicate:
    """Strategy of replicated training, and of a run of one process, for which it does nothing.

    Args:
        orders: Orders of rank 0.
    """

    orders: Orders
    is_sharded = False
    fetches_modules = False
    gathers = False

    @property
    def ranks(self) -> Ranks:
        """The processes."""
        return self.orders.ranks

    def place(self, model: Any) -> None:
        """No-op."""

    def prepare(self, model: Any) -> Any:
        """The model, unchanged."""
        return model

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Broadcast the trained tensors of rank 0."""
        if self.ranks.is_single:
            return
        for bucket in _buckets(list(trained.values())):
            flat = _flat([tensor.detach() for tensor in bucket])
            self.ranks.spread(flat)
            with torch.no_grad():
                _put_back(flat, bucket)

    def share(self, window: Sequence[int], costs: Sequence[int]) -> list[int]:
        """Rows with about as many tokens as those of the other processes; see :func:`split_rows`."""
        if self.ranks.is_single:
            return list(window)
        return split_rows(window, costs, self.ranks.count)[self.ranks.rank]

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """Micro-batches of this process."""
        yield from micro_batches

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """Failed micro-batches of this process."""
        return failed

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """Reduce gradients and numbers, in one message if all fit into :data:`BUCKET`."""
        if self.ranks.is_single:
            return list(sums)
        # A parameter without a gradient in any process keeps none, because the optimizer skips it.
        extra = torch.tensor([*sums, *(float(parameter.grad is not None) for parameter in parameters)])
        extra = extra.to(self.ranks.device)
        gradients = [_gradient(parameter) for parameter in parameters]
        first = True
        for bucket in _buckets(gradients):
            flat = _flat([*bucket, extra] if first else bucket)
            self.ranks.sum(flat)
            if first:
                extra, first = flat[flat.numel() - extra.numel() :].clone(), False
            _put_back(flat, bucket)
        numbers: list[float] = extra.tolist()
        for parameter, gradient, present in zip(parameters, gradients, numbers[len(sums) :], strict=True):
            parameter.grad = gradient if present else None
        return numbers[: len(sums)]

    def clip(self, parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
        """Clip by the norm of the reduced gradients, which every process has."""
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def leading(self) -> AbstractContextManager[None]:
        """Context in which the others only wait, since each process has the whole model."""
        return self.orders.leading()

    def lend(self) -> None:
        """Not used."""
        raise ValueError("Every process has the whole model.")

    def trained(self, usual: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.nn.Parameter]:
        """All trainable parameters."""
        return usual

    def square_sum(self, value: float) -> float:
        """The number itself: all processes make the same update."""
        return value

    def own_update(self, model: Any) -> Update | None:
        """None: the recipe's optimizer covers all parameters."""
        del model
        return None

    def whole_update(self, update: WeightUpdate) -> Update:
        """The update, unchanged."""
        return update

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The trained tensors, unchanged."""
        return usual

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read all of them."""
        read_tensors(path, usual)

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:
        """None: the model has them."""
        del model
        return None


def single() -> Replicate:
    """Strategy of a run of one process."""
    return Replicate(Orders(Ranks.single()))


def split_rows(window: Sequence[int], costs: Sequence[int], count: int) -> list[list[int]]:
    """Split the rows of a step among processes.

    Longest first, each row goes to the process with the fewest tokens so far (Graham's rule: at most 4/3 of the optimal
    maximum). It depends only on rows and lengths, so every process computes the same split.

    Args:
        window: Row indices.
        costs: Tokens of each row of the data.
        count: Number of processes.

    Returns:
        Rows of each process, in the order of the window; empty lists if there are fewer rows than processes.
    """
    loads = [0] * count
    owner: dict[int, int] = {}
    for place in sorted(range(len(window)), key=lambda place: (-costs[window[place]], place)):
        lightest = min(range(count), key=lambda rank: (loads[rank], rank))
        owner[place] = lightest
        loads[lightest] += costs[window[place]]
    return [[window[place] for place in range(len(window)) if owner[place] == rank] for rank in range(count)]


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    found = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    return found.contiguous()


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors in order, grouped into buckets of at most :data:`BUCKET` elements; larger ones are split into views. At
    least one bucket."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in (piece for whole in tensors for piece in _pieces(whole)):
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    yield bucket


def _pieces(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    return [tensor] if tensor.numel() <= BUCKET else torch.split(tensor.detach().view(-1), BUCKET)


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values of tensors concatenated in fp32."""
    return torch.cat([tensor.reshape(-1).to(torch.float32) for tensor in tensors])


def _put_back(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    begin = 0
    for tensor in tensors:
        tensor.copy_(flat[begin : begin + tensor.numel()].view_as(tensor))
        begin += tensor.numel()

"""The strategy ``fsdp2``: weights are sharded over the processes, and each process works on its rows.

A forward pass needs all processes, because each has a shard of every layer. In a step they cut their rows into equally
many micro-batches, filling up with idle passes of a single token. If one runs out of memory, an idle pass completes its
failed one, and all run the window again. Between steps rank 0 runs the model alone for evaluations and answers, and
announces each pass so that the others contribute their shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from core.worker.distributed.sharded import ShardedModel
from core.worker.distributed.shards import ShardedUpdate, Shards, whole_state
from core.worker.distributed.strategy import Strategy
from core.worker.model.safetensors_io import read_tensors
from core.worker.oom.retry import release
from core.worker.optim.update import Update, WeightUpdate


@dataclass
class Fsdp2(Strategy):
    """Weights sharded by ``torch.distributed.fsdp.fully_shard``.

    Args:
        offload: Keep shards in host memory.
    """

    offload: bool = False
    is_sharded = True
    gathers = True
    sharded: ShardedModel = field(init=False)
    """The sharded model, once it is placed."""
    _shards: Shards | None = field(default=None, init=False)
    _passes: int = field(default=0, init=False)
    """Remaining passes of the current window, including the current one."""

    def place(self, model: Any) -> None:
        """Shard the model layer by layer. Local."""
        mesh = init_device_mesh(self.ranks.device.type, (self.ranks.count,))
        self.sharded = ShardedModel(model, mesh, self.ranks.device, offload=self.offload)

    def prepare(self, model: Any) -> Any:
        """Run the first pass through the model. Together."""
        self.sharded.begin()
        if self.sharded.trained:
            self._shards = Shards(self.sharded.trained)
        return model

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Copy the adapters of rank 0; full weights were read by each process and are equal."""
        if self._shards is None:
            super().begin(trained)

    # A step.

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """Micro-batches of this process, plus idle passes if other processes have more. Together."""
        self._passes = self.ranks.largest(len(micro_batches))
        for number in range(self._passes):
            if number < len(micro_batches):
                self.sharded.begin_pass()
                yield micro_batches[number]
            else:
                self.sharded.idle_pass()
            self._passes -= 1

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """Failed micro-batches of all processes, once each has finished all passes of the window. Together."""
        if failed is not None and self._passes:
            release()
            self.sharded.end_failed_pass()
            for _ in range(self._passes - 1):
                self.sharded.idle_pass()
        self._passes = 0
        self.sharded.release()
        (any_failed,) = self.ranks.any([failed is not None])
        return self._gathered(failed or []) if any_failed else None

    def _gathered(self, batches: list[list[int]]) -> list[list[int]]:
        """Micro-batches of all processes."""
        # Rows in sequence, counted from 1; zero ends a batch.
        sent = [number for batch in batches for number in (*(row + 1 for row in batch), 0)]
        numbers = torch.zeros((self.ranks.count, self.ranks.largest(len(sent))), dtype=torch.int64)
        numbers[self.ranks.rank, : len(sent)] = torch.tensor(sent, dtype=torch.int64)
        self.ranks.sum(numbers)
        found: list[list[int]] = [[]]
        for number in numbers.flatten().tolist():
            if number:
                found[-1].append(number - 1)
            elif found[-1]:
                found.append([])
        return [batch for batch in found if batch]

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """As :meth:`Strategy.reduce`; gradients of sharded tensors are reduced already."""
        return super().reduce(parameters if self._shards is None else [], sums)

    # Between two steps.

    def leading(self) -> AbstractContextManager[None]:
        """Context in which rank 0 runs the model alone, without gradients; may be nested."""
        return self.orders.leading(self.sharded.leading)

    def lend(self) -> None:
        """In other ranks: take part in a pass of rank 0."""
        self.sharded.lend()

    # Trained tensors.

    def trained(self, usual: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.nn.Parameter]:
        """The shards, or the adapters."""
        return usual if self._shards is None else self._shards.parameters

    def square_sum(self, value: float) -> float:
        """Sum of a number over all processes. Together."""
        sums = torch.tensor([value], dtype=torch.float64)
        self.ranks.sum(sums)
        return float(sums)

    def whole_update(self, update: WeightUpdate) -> Update:
        """Update whose states are saved and loaded whole."""
        return update if self._shards is None else ShardedUpdate(update, self._shards)

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Whole trained tensors; only in rank 0 if they are sharded. Together."""
        return usual if self._shards is None else self._shards.weights()

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read this process's rows of each tensor."""
        if self._shards is None:
            read_tensors(path, usual)
        else:
            read_tensors(path, self._shards.parameters, rows=self._shards.own_rows)

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:
        """All weights of the model, on the host of rank 0. Together."""
        self.sharded.release()
        return whole_state(model)

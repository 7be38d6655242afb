"""The strategy ``fsdp2``: weights shared out among the processes, each of which works on its rows.

A forward pass needs all processes, as each has a share of every layer. In a step they cut their rows into equally many
micro-batches, those with fewer filling up with passes of a single token. Where memory runs out in one of them, that
pass is ended by a token as well, and all run the window again. Between two steps the first process runs the model alone
for evaluations and answers, and tells the others of each pass, to which they lend their shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.replicate import Replicate
from core.worker.distributed.sharded import ShardedModel
from core.worker.distributed.shards import ShardedUpdate, Shards, whole_state
from core.worker.model.safetensors_io import read_tensors
from core.worker.oom.retry import release
from core.worker.optim.update import Update, WeightUpdate


@dataclass
class Fsdp2:
    """Weights shared out by ``torch.distributed.fsdp.fully_shard``.

    Args:
        orders: Of the first process to the others.
        offload: Whether what is shared out lives in the machine's memory.
    """

    orders: Orders
    offload: bool = False
    is_sharded: bool = field(default=True, init=False)
    fetches_modules: bool = field(default=False, init=False)
    gathers: bool = field(default=True, init=False)
    _model: ShardedModel | None = field(default=None, init=False)
    _shards: Shards | None = field(default=None, init=False)
    _passes: int = field(default=0, init=False)
    """Passes of the window on hand that are still to be done, the one under way among them."""

    @property
    def ranks(self) -> Ranks:
        """The processes."""
        return self.orders.ranks

    @property
    def _replicated(self) -> Replicate:
        """How adapters are dealt with, which every process has whole."""
        return Replicate(self.orders)

    @property
    def sharded(self) -> ShardedModel:
        """The model, once it is shared out."""
        if self._model is None:
            raise ValueError("The model is not shared out yet.")
        return self._model

    def place(self, model: Any) -> None:
        """Share the model out, layer by layer. Each process does so for itself."""
        mesh = init_device_mesh(self.ranks.device.type, (self.ranks.count,))
        self._model = ShardedModel(model, mesh, self.ranks.device, offload=self.offload)

    def prepare(self, model: Any) -> Any:
        """Run the first pass through it. Together."""
        self.sharded.begin()
        if self.sharded.trained:
            self._shards = Shards(self.sharded.trained)
        return model

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Adapters become those of the first process; weights have been read by each, and are the same."""
        if self._shards is None:
            self._replicated.begin(trained)

    # A step.

    def share(self, window: Sequence[int], costs: Sequence[int]) -> list[int]:
        """As :meth:`Replicate.share`."""
        return self._replicated.share(window, costs)

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """The micro-batches of this process, and passes for the others where they have more. Together."""
        counts = torch.zeros(self.ranks.count)
        counts[self.ranks.rank] = len(micro_batches)
        self.ranks.sum(counts)
        self._passes = int(counts.max())
        for number in range(self._passes):
            if number < len(micro_batches):
                self.sharded.begin_pass()
                yield micro_batches[number]
            else:
                self.sharded.idle_pass()
            self._passes -= 1

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """The failed micro-batches of all processes, once each has done all passes of the window. Together."""
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
        """The micro-batches of all processes."""
        # Rows one behind another; zero is the end of a batch, so that they are counted from one.
        sent = [number for batch in batches for number in (*(row + 1 for row in batch), 0)]
        lengths = torch.zeros(self.ranks.count, dtype=torch.int64)
        lengths[self.ranks.rank] = len(sent)
        self.ranks.sum(lengths)
        numbers = torch.zeros((self.ranks.count, int(lengths.max())), dtype=torch.int64)
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
        """As :meth:`Replicate.reduce`; gradients of what is shared out are summed already."""
        return self._replicated.reduce(parameters if self._shards is None else [], sums)

    def clip(self, parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
        """As :meth:`Replicate.clip`, of adapters."""
        return self._replicated.clip(parameters, limit)

    # Between two steps.

    def leading(self) -> AbstractContextManager[None]:
        """A context in which the first process runs the model alone, without gradients; may be nested."""
        return self.orders.leading(self.sharded.leading)

    def lend(self) -> None:
        """In another process: take part in a pass of the first one."""
        self.sharded.lend()

    # What is trained.

    def trained(self, usual: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.nn.Parameter]:
        """Its shares, or the adapters."""
        return usual if self._shards is None else self._shards.parameters

    def square_sum(self, value: float) -> float:
        """The sum of a number of each process. Together."""
        sums = torch.tensor([value], dtype=torch.float64)
        self.ranks.sum(sums)
        return float(sums)

    def own_update(self, model: Any) -> Update | None:
        """None: shares are updated as whole tensors are."""
        del model
        return None

    def whole_update(self, update: WeightUpdate) -> Update:
        """An update whose states are saved and loaded whole."""
        return update if self._shards is None else ShardedUpdate(update, self._shards)

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Trained tensors, whole; in the first process alone where they are shared out. Together."""
        return usual if self._shards is None else self._shards.weights()

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read this process's rows of each tensor."""
        if self._shards is None:
            read_tensors(path, usual)
        else:
            read_tensors(path, self._shards.parameters, rows=self._shards.own_rows)

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:
        """All weights of the model, on the host of the first process. Together."""
        self.sharded.release()
        return whole_state(model)

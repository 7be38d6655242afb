"""Strategies: how the processes of a run share the model and the work of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.optim.update import Update, WeightUpdate


class Strategy(Protocol):
    """A strategy as the recipe uses it; the same calls in the same order in every process.

    Where a call has to be made by all of them at the same moment, it says "together".
    """

    @property
    def ranks(self) -> Ranks:
        """The processes."""

    @property
    def is_sharded(self) -> bool:
        """Whether a process has a share of the weights only, so that a pass of the model needs all of them."""

    @property
    def fetches_modules(self) -> bool:
        """Whether weights are there only while their own module is called, so that layers cannot be fused."""

    @property
    def gathers(self) -> bool:
        """Whether optimizer states, or weights, are brought together for a checkpoint, which needs all processes."""

    def connect(self, orders: Orders) -> None:
        """Told how the first process speaks to the others."""

    def place(self, model: Any) -> None:
        """Share a model out: its adapters are attached, its layers are not fused yet. On the host it has been until now
        only this process's share is left.

        Args:
            model: A ``transformers`` model, or a ``PeftModel`` around one.

        Raises:
            UserError: If it has weights that cannot be shared out.
        """

    def prepare(self, model: Any) -> Any:
        """The model as it is trained, once it is placed everywhere. Together where :attr:`is_sharded`."""

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Before the first step: what is trained becomes that of the first process in all of them. Together.

        Args:
            trained: What is trained, by name.
        """

    def share(self, window: Sequence[int], costs: Sequence[int]) -> list[int]:
        """The rows of a window that this process works on.

        Args:
            window: Row indices.
            costs: Tokens of each row of the data.
        """

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """The micro-batches of this process's rows, one by one. Together where :attr:`is_sharded`."""

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """The end of an attempt at a window: the micro-batches of one for which there was no memory, so that it is to
        be run again: by all together where :attr:`is_sharded`, else by each process for itself.

        Args:
            failed: Those of this process; None where there was memory.

        Returns:
            Those of all processes that had none; None where all had.
        """

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """The end of a window: gradients become their sum over all processes. Together.

        Args:
            parameters: What is trained, in the same order everywhere; some without a gradient.
            sums: Numbers of this process.

        Returns:
            The numbers, summed.
        """

    def clip(self, parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
        """Clip gradients by the norm of all of them; returns it."""

    def leading(self) -> AbstractContextManager[None]:
        """A context in which the first process runs the model alone, between two steps."""

    def lend(self) -> None:
        """In another process: take part in a pass that the first one does alone."""

    def trained(self, usual: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.nn.Parameter]:
        """What the optimizer of this process updates.

        Args:
            usual: What is trained, by name.
        """

    def square_sum(self, value: float) -> float:
        """The sum of a number over processes that update different things. Together where :attr:`is_sharded`."""

    def own_update(self, model: Any) -> Update | None:
        """The update of a strategy that has an optimizer of its own; None where the recipe's is used. Together.

        Args:
            model: The model, ready to be trained.
        """

    def whole_update(self, update: WeightUpdate) -> Update:
        """An update whose states are saved and loaded as those of a run of one process."""

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What is trained as in a run of one process, for a checkpoint; in the first process. Together where
        :attr:`is_sharded`.

        Args:
            usual: What is trained, by name.
        """

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read what is trained from a checkpoint's file.

        Raises:
            UserError: If it does not fit.
        """

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:
        """All weights of a model, by name, in the first process; None where the model has them. Together where
        :attr:`is_sharded`."""

"""Strategies: how the processes of a run share the model and the work of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from core.worker.distributed.ranks import Ranks


class Strategy(Protocol):
    """A strategy as the recipe uses it; the same calls in the same order in every process.

    Where a call has to be made by all of them at the same moment, it says "together".
    """

    @property
    def ranks(self) -> Ranks:
        """The processes."""

    @property
    def takes_all(self) -> bool:
        """Whether the model runs, and what is trained can be read, only by all together: evaluations, answers and
        checkpoints are then made by all, and all cut a window into equally many micro-batches."""

    def prepare(self, model: Any) -> Any:
        """The model as it is trained, once its adapters are attached, its layers fused and moved to the device; before
        its optimizer is made. Together where :attr:`takes_all`.

        Args:
            model: A ``transformers`` model, or a ``PeftModel`` around one.
        """

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

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """The end of a window: gradients become their sum over all processes. Together.

        Args:
            parameters: What is trained, in the same order everywhere; some without a gradient.
            sums: Numbers of this process.

        Returns:
            The numbers, summed.
        """

    def clip(self, parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
        """Clip gradients by the norm of all of them; returns it. Together where :attr:`takes_all`."""

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """One tensor of the weights or of the optimizer's states as it would be in a run of one process: for a
        checkpoint, which does not depend on the number of processes. Together where :attr:`takes_all`."""

    def part(self, whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The opposite: what this process holds of a whole tensor.

        Args:
            whole: As :meth:`whole` gives it, the same in every process.
            like: The tensor that it becomes.
        """

"""Reference log-probabilities of preference training, without a second model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from core.worker.data.batches import collate, upload
from core.worker.data.encode import TokenizedRow
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import switched_off
from core.worker.model.model import LoadedModel, evaluation_mode
from core.worker.oom.retry import NoGradBatches, ignore

#: Context of the training precision.
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class Reference(Protocol):
    """Log-probabilities of answers before training."""

    def __call__(
        self, sequences: Sequence[TokenizedRow], input_ids: torch.Tensor, supervised: torch.Tensor
    ) -> torch.Tensor:
        """Log-probability of the supervised tokens of each sequence.

        Args:
            sequences: The sequences before padding.
            input_ids: ``(rows, length)``, int64.
            supervised: ``(rows, length)``, bool.

        Returns:
            ``(rows,)``, fp32, without gradient.
        """


@dataclass(frozen=True)
class AdapterOffReference:
    """The model in training with its adapter disabled, without dropout.

    Args:
        model: Model with adapters that leave the base unchanged and begin without effect.
        loss: Of the same model.
    """

    model: Any
    loss: SupervisedLoss

    def __call__(
        self, sequences: Sequence[TokenizedRow], input_ids: torch.Tensor, supervised: torch.Tensor
    ) -> torch.Tensor:
        """See :class:`Reference`; run anew for each batch, so that a resumed run has the same to the last bit."""
        del sequences
        with torch.no_grad(), evaluation_mode(self.model), switched_off(self.model):
            return self.loss.log_probabilities(input_ids, supervised)


class PrecomputedReference:
    """Log-probabilities computed from the weights before training.

    If memory runs out, batches become smaller. ``token_budget`` is then the budget of all of them, so that a run that
    computes them again gets the same bits.

    Args:
        token_budget: Token budget of a batch.
        notice: Receives warnings of cuts: ``notice(code, message, hint)``.
    """

    def __init__(self, token_budget: int, notice: Callable[[str, str, str], None] = ignore) -> None:
        # By identity: repeated rows are the same object, and callers hold them.
        self._known: dict[int, float] = {}
        self._notice = notice
        self.token_budget = token_budget

    def precompute(
        self,
        sequences: Sequence[TokenizedRow],
        loaded: LoadedModel,
        loss: SupervisedLoss,
        autocast: Autocast,
        progress: Callable[[int, int], None],
    ) -> None:
        """Run the model over all sequences that will be needed.

        Args:
            sequences: Sequences needed later; the same objects.
            loaded: The model, its weights untouched.
            loss: Of the same model.
            autocast: The arithmetic of training.
            progress: Called with sequences done, of how many; may raise to stop.

        Raises:
            MemoryShortageError: If a single one does not fit.
        """
        wanted = list({id(sequence): sequence for sequence in sequences}.values())
        lengths = list(map(len, wanted))

        def run(batch: list[int]) -> list[float]:
            rows = [wanted[place] for place in batch]
            # One context per batch: autocast's cache would be kept alive while memory is released.
            with torch.no_grad(), evaluation_mode(loaded.model), autocast():
                padded = collate(rows, loaded.pad_id, loaded.device)
                found: list[float] = loss.log_probabilities(*padded).tolist()
            return found

        def refusal(place: int) -> tuple[str, str]:
            message = f"Memory ran out with a single answer of {lengths[place]} tokens in measuring the reference"
            return message, f"Set train.max_length below {lengths[place]}, or choose a smaller base model."

        batches = NoGradBatches(self.token_budget, self._warn_of_cut, refusal)
        budgets: set[int] = set()
        while len(budgets) != 1:  # twice if the budget was cut on the way
            budgets, done = set(), 0
            for batch, found in batches.run(lengths, run):
                self._known |= {id(wanted[place]): value for place, value in zip(batch, found, strict=True)}
                budgets.add(batches.token_budget)
                done += len(batch)
                progress(done, len(wanted))
        self.token_budget = batches.token_budget

    def _warn_of_cut(self, rows: int, now: int) -> None:
        self._notice(
            "memory_reference",
            f"Memory ran out in measuring {rows} answers by the reference at once: it is done with {now}.",
            "They are the same but for rounding.",
        )

    def __call__(
        self, sequences: Sequence[TokenizedRow], input_ids: torch.Tensor, supervised: torch.Tensor
    ) -> torch.Tensor:
        """See :class:`Reference`."""
        del supervised
        known = np.array([self._known[id(sequence)] for sequence in sequences], dtype=np.float32)
        return upload(known, input_ids.device)

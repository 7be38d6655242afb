"""The reference of preference training: the log-probabilities that answers had before, from no second model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from core.worker.adapters import switched_off
from core.worker.batches import collate, split_window
from core.worker.loss import SupervisedLoss
from core.worker.model import LoadedModel, evaluation_mode
from core.worker.template import TokenizedRow

#: Makes a context of the arithmetic of training.
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class Reference(Protocol):
    """Says how likely answers were before training."""

    def __call__(
        self, sequences: Sequence[TokenizedRow], input_ids: torch.Tensor, supervised: torch.Tensor
    ) -> torch.Tensor:
        """The log-probability of what is supervised in each sequence.

        Args:
            sequences: As they were before they were padded.
            input_ids: ``(rows, length)``, int64.
            supervised: ``(rows, length)``, bool.

        Returns:
            ``(rows,)``, fp32, without gradient.
        """


class AdapterOff:
    """The model that is trained, its adapter switched off and without dropout.

    Args:
        model: With adapters that leave its base as it was and begin without effect.
        loss: Of the same model.
    """

    def __init__(self, model: Any, loss: SupervisedLoss) -> None:
        self._model = model
        self._loss = loss

    def __call__(
        self, sequences: Sequence[TokenizedRow], input_ids: torch.Tensor, supervised: torch.Tensor
    ) -> torch.Tensor:
        """See :class:`Reference`; run anew for each batch, so that a resumed run has the same to the last bit."""
        del sequences
        with torch.no_grad(), evaluation_mode(self._model), switched_off(self._model):
            return self._loss.log_probabilities(input_ids, supervised)


class Measured:
    """Log-probabilities taken from the weights as they are now, before these change."""

    def __init__(self) -> None:
        # By identity: rows that are repeated are the same object, and whoever asks holds it.
        self._known: dict[int, float] = {}

    def measure(
        self,
        sequences: Sequence[TokenizedRow],
        loaded: LoadedModel,
        loss: SupervisedLoss,
        token_budget: int,
        autocast: Autocast,
        progress: Callable[[int, int], None],
    ) -> None:
        """Run the model over all sequences that may be asked for.

        Args:
            sequences: What is asked for later; the same objects.
            loaded: The model, its weights untouched.
            loss: Of the same model.
            token_budget: The most tokens of a batch.
            autocast: The arithmetic of training.
            progress: Told sequences done, of how many; may raise to stop.
        """
        wanted = list({id(sequence): sequence for sequence in sequences}.values())
        done = 0
        with torch.no_grad(), evaluation_mode(loaded.model), autocast():
            for batch in split_window(range(len(wanted)), list(map(len, wanted)), token_budget):
                rows = [wanted[place] for place in batch]
                found = loss.log_probabilities(*collate(rows, loaded.tokenizer.pad_token_id or 0, loaded.device))
                self._known |= {id(row): value for row, value in zip(rows, found.tolist(), strict=True)}
                done += len(batch)
                progress(done, len(wanted))

    def __call__(
        self, sequences: Sequence[TokenizedRow], input_ids: torch.Tensor, supervised: torch.Tensor
    ) -> torch.Tensor:
        """See :class:`Reference`."""
        del supervised
        return torch.tensor([self._known[id(sequence)] for sequence in sequences], device=input_ids.device)

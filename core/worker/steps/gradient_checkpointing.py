"""Gradient checkpointing and activation offloading of a model in training, turned on when memory asks for it."""

from __future__ import annotations

from typing import Any

from core.worker.model.activation_offload import ActivationOffload
from core.worker.model.model import set_gradient_checkpointing
from core.worker.progress.state import TrainState


class GradientCheckpointing:
    """Puts in force what the training state says: activations kept, recomputed, or recomputed from host memory.

    Args:
        model: A ``transformers`` model, or a ``PeftModel`` around one.
        state: Says which; :meth:`enable` changes it.
        offload: Moves to host memory what recomputing starts from; None where there is no way, or it is not to be.
    """

    def __init__(self, model: Any, state: TrainState, offload: ActivationOffload | None = None) -> None:
        self._model = model
        self._state = state
        self._offload = offload
        self.apply()

    @property
    def can_offload(self) -> bool:
        """Whether what recomputing starts from can be moved to host memory."""
        return self._offload is not None

    def enable(self, *, offload: bool = False) -> None:
        """Recompute activations in backward from now on; ``offload`` moves what that starts from to host memory, where
        there is a way."""
        self._state.checkpointing, self._state.offloading = True, offload
        self.apply()

    def apply(self) -> None:
        """Put in force what the state says, after it was restored."""
        state = self._state
        state.offloading = state.checkpointing and state.offloading and self.can_offload
        set_gradient_checkpointing(self._model, state.checkpointing, self._offload if state.offloading else None)

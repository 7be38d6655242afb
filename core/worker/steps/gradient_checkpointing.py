"""Gradient checkpointing and activation offloading of a model in training, turned on when memory asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.worker.model.activation_offload import ActivationOffload
from core.worker.model.model import set_gradient_checkpointing
from core.worker.progress.state import TrainState


@dataclass(frozen=True)
class GradientCheckpointing:
    """Puts in force what the training state says: activations kept, recomputed, or recomputed from host memory.

    Args:
        model: A ``transformers`` model, or a ``PeftModel`` around one.
        state: Says which; :meth:`enable` changes it.
        offload: Moves to host memory what recomputing starts from; None where there is no way, or it is not to be.
    """

    model: Any
    state: TrainState
    offload: ActivationOffload | None = None

    def __post_init__(self) -> None:
        self.apply()

    def enable(self, *, offload: bool = False) -> None:
        """Recompute activations in backward from now on; ``offload`` moves what that starts from to host memory, where
        there is a way."""
        self.state.checkpointing, self.state.offloading = True, offload
        self.apply()

    def apply(self) -> None:
        """Put in force what the state says, after it was restored."""
        state = self.state
        state.offloading = state.checkpointing and state.offloading and self.offload is not None
        set_gradient_checkpointing(self.model, state.checkpointing, self.offload if state.offloading else None)

"""Gradient checkpointing and activation offloading of a model in training, turned on when memory asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.worker.model.activation_offload import ActivationOffload
from core.worker.model.model import decoder_layers, set_gradient_checkpointing
from core.worker.progress.state import TrainState

#: Share of the layers below which keeping the activations of some wins no time worth a further try.
FEWEST_KEPT = 8


@dataclass(frozen=True)
class GradientCheckpointing:
    """Puts in force what the training state says: activations kept, those of some layers or all recomputed, or
    recomputed from host memory.

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

    def enable(self, *, kept_layers: int = 0, offload: bool = False) -> None:
        """Recompute activations in backward from now on.

        Args:
            kept_layers: Number of layers, the last ones, whose activations are kept nevertheless.
            offload: Whether what recomputing starts from moves to host memory, where there is a way.
        """
        self.state.checkpointing, self.state.kept_layers, self.state.offloading = True, kept_layers, offload
        self.apply()

    def fewer_kept_layers(self) -> int:
        """The number of kept layers to go on with where memory has run out: half of them, down to an eighth of all, and
        then none."""
        layers = len(decoder_layers(self.model))
        half = (self.state.kept_layers if self.state.checkpointing else layers) // 2
        return half if half * FEWEST_KEPT >= layers else 0

    def apply(self) -> None:
        """Put in force what the state says, after it was restored."""
        state = self.state
        state.offloading = state.checkpointing and state.offloading and self.offload is not None
        offload = self.offload if state.offloading else None
        state.kept_layers = set_gradient_checkpointing(
            self.model, state.checkpointing, offload, kept_layers=state.kept_layers
        )

"""What comes and goes with a micro-batch, at the moments that may be the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.memory.activations import LayerSteps
from core.memory.attention import scores_of_sdpa
from core.memory.batching import chunk_positions
from core.memory.norms import norm_backward, norm_form, norm_kept
from core.memory.sizes import OFFLOAD_IN_FLIGHT
from core.memory.steps import FP32, Adapters, Arithmetic, LayerMemory, layer_memory
from core.models.architecture.architecture import Architecture


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch that the data can make.

    Args:
        rows: Its rows.
        length: Their length, padding included.
        supervised: Positions that are learned.
    """

    rows: int
    length: int
    supervised: int

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.rows * self.length


@dataclass(frozen=True)
class Phase:
    """Bytes alive at one moment: kept for backward, kept for the adapters, one layer at work, the loss, its logits.

    ``gaps`` are part of none of these: where tensors have been that are smaller than those that follow. ``gradients``
    and ``update`` are of weights that are updated inside backward, or after it.
    """

    kept: float
    adapters: float
    layer: float
    loss: float
    logits: float
    gaps: float = 0.0
    gradients: float = 0.0
    update: float = 0.0

    @property
    def total(self) -> float:
        """All of it, at the one moment."""
        return self.kept + self.adapters + self.layer + self.loss + self.logits + self.gradients + self.update


class Pass:
    """A pass over a micro-batch, forward and backward.

    Args:
        model: The base model.
        arithmetic: How numbers are held.
        adapters: What is trained, for each kind of layer.
        batch: The micro-batch.
        checkpointing: Whether activations are recomputed.
        offload: Whether what recomputing starts from is in the machine's memory.
        gradient_from: What is the first to need a gradient: ``embeddings``, ``first layer``, or the first layer whose
            own weights are ``trained``.
    """

    def __init__(
        self,
        model: Architecture,
        arithmetic: Arithmetic,
        adapters: Sequence[Adapters],
        batch: MicroBatch,
        *,
        checkpointing: bool,
        offload: bool = False,
        gradient_from: str = "first layer",
    ) -> None:
        self._gradient_from = gradient_from
        self._model = model
        self._how = arithmetic
        self._adapters = adapters
        self._batch = batch
        self._checkpointing = checkpointing
        self._offload = offload

    def phases(self) -> dict[str, Phase]:
        """What comes and goes with a micro-batch, at the two moments that may be the worst."""
        model, a, tokens = self._model, self._how.bytes, self._batch.tokens
        hidden = a * model.hidden * tokens
        memories = self._layers()
        last_layer, last = model.layers[-1], memories[-1]
        form = norm_form(last_layer, self._how, trained=self._gradient_from == "embeddings")
        norm = tokens * norm_kept(form, self._how, model.hidden)
        backward = norm + tokens * norm_backward(form, self._how, model.hidden)
        logits, gaps = self._logits(), self._gaps()
        loss = hidden + norm + 2 * a * model.hidden * self._batch.supervised
        masks = self._masks()
        kept, adapters = sum(memory.kept for memory in memories), sum(memory.adapters for memory in memories)
        if self._checkpointing:
            here = min(model.depth, OFFLOAD_IN_FLIGHT) if self._offload else model.depth
            inputs = here * hidden + masks
            casts = sum(memory.casts for memory in memories)
            # The gradient that a layer is met with; the norm that ends one of four of them has made its own in fp32.
            gradient = hidden + (tokens * FP32 * model.hidden if last_layer.norms == 4 else 0)
            worst = max(memories, key=lambda memory: max(memory.again + gradient, memory.backward))
            layer = max(worst.again + gradient, worst.backward) - worst.adapters
            return {
                "loss": Phase(inputs, casts, 0, max(loss, backward - logits), logits, gaps),
                "backward": Phase(inputs, worst.adapters, layer, 0, 0),
            }
        layer = max(last.forward + 2 * hidden, last.backward + hidden) - last.adapters
        return {
            "loss": Phase(kept + masks, adapters, 0, max(loss, backward - logits), logits, gaps),
            "backward": Phase(kept - last.kept + masks, adapters, layer, 0, 0),
        }

    def _layers(self) -> list[LayerMemory]:
        """The memory of every layer, the first one first."""
        found: list[LayerMemory] = []
        reached = self._gradient_from == "embeddings"
        for layer, adapters in zip(self._model.layers, self._adapters, strict=True):
            passed = LayerSteps(layer, self._model.hidden, self._how, adapters, self._batch.length)
            # Recomputing starts from the layers' inputs, which are counted by themselves.
            there_already = self._how.bytes * self._model.hidden if self._checkpointing and passed.keeps_input else 0.0
            steps = passed.steps()
            for first in [True] + [False] * (layer.count > 1):
                memory = layer_memory(
                    steps,
                    self._batch.tokens,
                    self._batch.length,
                    with_gradient=reached,
                    there_already=there_already,
                )
                found += [memory] * (1 if first else layer.count - 1)
                reached = reached or adapters.weights or self._gradient_from != "trained"
        return found

    def _masks(self) -> int:
        """Attention masks: none where causality alone is asked of a fused kernel."""
        scores, found = self._batch.tokens * self._batch.length, 0
        attention = self._model.layers[0].attention
        if attention.kernel == "eager":
            found += self._how.bytes * scores * (2 if attention.window is not None else 1)
        elif attention.window is not None and attention.window < self._batch.length:
            found += scores
        return found

    def _gaps(self) -> int:
        """The logits of a chunk before they are fp32, and where they are capped, what comes between; and the scores of
        a layer where SDPA makes some."""
        batch = self._batch
        scores = (scores_of_sdpa(layer.attention, self._how, batch.length) for layer in self._model.layers)
        made = 0 if self._how.bytes == FP32 else 3 if self._model.softcap else 1
        logits = made * self._how.bytes * self._chunk() * self._model.vocabulary
        return logits + max(scores) * batch.tokens * batch.length

    def _chunk(self) -> int:
        return min(chunk_positions(self._model.vocabulary), self._batch.supervised)

    def _logits(self) -> int:
        """The logits of a chunk of supervised positions: log-probabilities, their gradient and that of the logits, all
        fp32, are alive at once."""
        return self._chunk() * self._model.vocabulary * (3 * FP32 + (self._how.bytes if self._model.softcap else 0))

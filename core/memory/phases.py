"""Phases of a micro-batch: transient memory at the moments that may be the peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.memory.activations import LayerSteps
from core.memory.attention import scores_of_sdpa
from core.memory.batching import chunk_positions
from core.memory.norms import norm_backward, norm_form, norm_kept
from core.memory.sizes import OFFLOAD_IN_FLIGHT
from core.memory.steps import FP32, Adapters, Arithmetic, LayerMemory, layer_memory
from core.models.architecture.architecture import Architecture
from core.models.architecture.measured import LayerGrowth, Passes, peak_at


@dataclass(frozen=True)
class MicroBatch:
    """Largest micro-batch that the data can form.

    Args:
        rows: Number of its rows.
        length: Their length, padding included.
        supervised: Number of positions in the loss.
    """

    rows: int
    length: int
    supervised: int

    @property
    def tokens(self) -> int:
        """Number of tokens, padding included."""
        return self.rows * self.length


@dataclass(frozen=True)
class Phase:
    """Memory alive at one moment, in bytes: kept for backward, kept for the adapters, the running layer, the loss, its
    logits.

    ``gaps`` is fragmentation: freed blocks smaller than the tensors that follow. ``gradients`` and ``update`` are of
    weights that are updated inside backward, or after it.
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
        """Sum of all parts."""
        return self.kept + self.adapters + self.layer + self.loss + self.logits + self.gradients + self.update


class Pass:
    """Forward and backward pass of a micro-batch.

    Args:
        model: The base model.
        arithmetic: Dtypes and kernels.
        adapters: Trained parameters of each kind of layer.
        batch: The micro-batch.
        kept_layers: Number of layers, the last ones, whose activations are kept; those of the others are recomputed.
        offload: Whether checkpointed layer inputs are offloaded to host memory.
        gradient_from: First to need a gradient: ``embeddings``, ``first layer``, or the first layer whose own weights
            are ``trained``.
        measured: What layers of a family that the tables do not know keep and take.
    """

    def __init__(
        self,
        model: Architecture,
        arithmetic: Arithmetic,
        adapters: Sequence[Adapters],
        batch: MicroBatch,
        *,
        kept_layers: int,
        offload: bool = False,
        gradient_from: str = "first layer",
        measured: Passes | None = None,
    ) -> None:
        self._measured = measured
        self._gradient_from = gradient_from
        self._model = model
        self._how = arithmetic
        self._adapters = adapters
        self._batch = batch
        self._kept_layers = kept_layers
        self._offload = offload

    def phases(self) -> dict[str, Phase]:
        """Memory of a micro-batch at the two moments that may be the peak."""
        model, a, tokens = self._model, self._how.bytes, self._batch.tokens
        hidden = a * model.hidden * tokens
        memories = self._layers() if self._measured is None else self._measured_layers(self._measured)
        last_layer, last = model.layers[-1], memories[-1]
        norm, backward = self._end()
        logits, gaps = self._logits(), self._gaps()
        loss = hidden + norm + 2 * a * model.hidden * self._batch.supervised
        masks, shared = self._masks(), self._shared()
        again = model.depth - self._kept_layers
        kept_layers = memories[again:]
        here = min(again, OFFLOAD_IN_FLIGHT) if self._offload else again
        inputs = here * hidden + masks
        # Of recomputed layers only the casts of the adapters' weights stay.
        casts = sum(memory.casts for memory in memories[:again])
        kept = sum(memory.kept for memory in kept_layers)
        adapters = sum(memory.adapters for memory in kept_layers)
        backward_phases = []
        if kept_layers:
            layer = max(last.forward + 2 * hidden, last.backward + hidden) - last.adapters
            backward_phases.append(Phase(inputs + kept - last.kept, adapters, layer, 0, 0))
        if again:
            # The incoming gradient of a layer; a norm at the end of a layer with four norms has made its own in fp32.
            gradient = hidden + (tokens * FP32 * model.hidden if last_layer.norms == 4 else 0)
            worst = max(memories[:again], key=lambda memory: max(memory.again + gradient, memory.backward))
            layer = max(worst.again + gradient, worst.backward) - worst.adapters
            # The kept layers have run backward by then.
            backward_phases.append(Phase(inputs + shared, worst.adapters, layer, 0, 0))
        return {
            "loss": Phase(inputs + kept, casts + adapters, 0, max(loss, backward - logits), logits, gaps),
            "backward": max(backward_phases, key=lambda phase: phase.total),
        }

    def _layers(self) -> list[LayerMemory]:
        """Memory of every layer, in order."""
        found: list[LayerMemory] = []
        reached = self._gradient_from == "embeddings"
        again = self._model.depth - self._kept_layers
        for layer, adapters in zip(self._model.layers, self._adapters, strict=True):
            passed = LayerSteps(layer, self._model.hidden, self._how, adapters, self._batch.length)
            # Recomputation starts from the layers' inputs, which are counted separately.
            input_bytes = self._how.bytes * self._model.hidden if passed.keeps_input else 0.0
            steps = passed.steps()
            known: dict[tuple[bool, bool], LayerMemory] = {}
            for _ in range(layer.count):
                case = reached, len(found) < again
                if case not in known:
                    known[case] = layer_memory(
                        steps,
                        self._batch.tokens,
                        self._batch.length,
                        with_gradient=reached,
                        there_already=input_bytes if case[1] else 0.0,
                    )
                found.append(known[case])
                reached = reached or adapters.weights or self._gradient_from != "trained"
        return found

    def _measured_layers(self, measured: Passes) -> list[LayerMemory]:
        """Memory of every layer of a measured model, in order."""
        tokens, row = self._batch.tokens, self._batch.length
        regime = measured.regime(row)
        known: dict[tuple[int, bool | None], LayerMemory] = {}
        found: list[LayerMemory] = []
        for number, kind in enumerate(measured.kinds):
            # Below the first trained layer nothing is kept.
            reached = None if number < measured.gradient_from else number > measured.gradient_from
            if (kind, reached) not in known:
                layer = regime.layer(kind, reached=bool(reached))
                known[kind, reached] = _measured_memory(layer, tokens, row, keeps=reached is not None)
            found.append(known[kind, reached])
        return found

    def _end(self) -> tuple[float, float]:
        """Memory of the last norm: kept for backward, and at the peak of its backward pass."""
        model, tokens = self._model, self._batch.tokens
        if self._measured is not None:
            regime = self._measured.regime(self._batch.length)
            kept = regime.end.at(tokens, self._batch.length)
            return kept, peak_at(regime.end_backward, tokens, self._batch.length)
        form = norm_form(model.layers[-1], self._how, trained=self._gradient_from == "embeddings")
        kept = tokens * norm_kept(form, self._how, model.hidden)
        return kept, kept + tokens * norm_backward(form, self._how, model.hidden)

    def _masks(self) -> int:
        """Attention masks: none if a fused kernel only needs causality."""
        if self._measured is not None:
            row = self._batch.length
            return int(self._measured.regime(row).around.at(self._batch.tokens, row))
        scores, found = self._batch.tokens * self._batch.length, 0
        attention = self._model.layers[0].attention
        if attention.kernel == "eager":
            found += self._how.bytes * scores * (2 if attention.window is not None else 1)
        elif attention.window is not None and attention.window < self._batch.length:
            found += scores
        return found

    def _shared(self) -> float:
        """Memory beside a recomputed layer, of what layers share."""
        if self._measured is None:
            return 0.0
        row = self._batch.length
        return self._measured.regime(row).shared.at(self._batch.tokens, row)

    def _gaps(self) -> int:
        """Fragmentation: the logits of a chunk before the cast to fp32, with soft-capping its intermediates too; and
        the scores of a layer if SDPA makes some.
        """
        batch = self._batch
        scores = 0
        if self._measured is None:
            scores = max(scores_of_sdpa(layer.attention, self._how, batch.length) for layer in self._model.layers)
        made = 0 if self._how.bytes == FP32 else 3 if self._model.softcap else 1
        logits = made * self._how.bytes * self._chunk() * self._model.vocabulary
        return logits + scores * batch.tokens * batch.length

    def _chunk(self) -> int:
        return min(chunk_positions(self._model.vocabulary), self._batch.supervised)

    def _logits(self) -> int:
        """Logits of a chunk of supervised positions: log-probabilities, their gradient and that of the logits, all
        fp32, are alive at once.
        """
        return self._chunk() * self._model.vocabulary * (3 * FP32 + (self._how.bytes if self._model.softcap else 0))


def _measured_memory(layer: LayerGrowth, tokens: int, row: int, *, keeps: bool) -> LayerMemory:
    """Memory of a measured layer.

    Args:
        layer: As it was measured.
        tokens: Tokens of the micro-batch, padding included.
        row: Tokens of a row, padding included.
        keeps: Whether anything in it or before it is trained.
    """
    whole = math.ceil(row / layer.multiple) * layer.multiple
    tokens, row = tokens // row * whole, whole
    forward = int(peak_at(layer.forward, tokens, row))
    if not keeps:
        return LayerMemory(kept=0, adapters=0, forward=forward, again=0, backward=0, casts=0)
    casts = int(layer.casts.at(tokens, row))
    return LayerMemory(
        kept=int(layer.kept.at(tokens, row)) - casts,
        adapters=casts,
        forward=forward,
        again=int(peak_at(layer.again, tokens, row)),
        backward=int(peak_at(layer.backward, tokens, row)),
        casts=casts,
    )

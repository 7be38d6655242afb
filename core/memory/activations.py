"""Activation memory of one decoder layer: tensors kept for backward, and transient memory while it runs.

These are the layers of the families that the tables tell: RMS norms, rotary embeddings, a gated feed-forward network.
Those of other families are measured (:mod:`core.worker.measure`). A layer is modeled as the steps of its forward pass,
in order, operation by operation: those of eager PyTorch with transformers' models and PEFT's adapters, or those of the
worker's own functions (:mod:`core.worker.fused`) where these replace them. Tests compare the figures with torch's
actual allocations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from core.memory.attention import attention_step, keeps_output
from core.memory.norms import norm_form, norm_step
from core.memory.steps import FP32, Adapters, Arithmetic, Step
from core.models.architecture.architecture import Layer, Linear

#: Computation of a linear layer: frozen and without an adapter; with its own weights trained; with an adapter by PEFT;
#: with an adapter by the worker's function.
LinearForm = Literal["frozen", "trained", "peft", "fused"]


class LayerSteps:
    """Steps of the forward pass of one layer.

    Args:
        layer: Shapes of the layer.
        hidden: Hidden size.
        arithmetic: Dtypes and kernels.
        adapters: Trained parameters.
        row: Tokens of the longest row, padding included: a sliding window shorter than it needs a mask.
    """

    def __init__(self, layer: Layer, hidden: int, arithmetic: Arithmetic, adapters: Adapters, row: int) -> None:
        self._layer = layer
        self._hidden = hidden
        self._how = arithmetic
        self._adapters = adapters
        self._row = row
        self._norm = norm_form(layer, arithmetic, trained=adapters.weights)

    @property
    def keeps_input(self) -> bool:
        """Whether the tensor that the first norm keeps is the layer's own input."""
        return self._norm == "fused"

    def steps(self) -> list[Step]:
        """Steps in the order of the forward pass."""
        return list(self._steps())

    def _steps(self) -> Iterator[Step]:
        layer, a, hidden = self._layer, self._how.bytes, self._hidden
        attention = [linear for linear in layer.linears if "mlp" not in linear.name]
        network = [linear for linear in layer.linears if "mlp" in linear.name]
        # If the norm keeps it, it is counted there.
        residual = 0 if self.keeps_input else a * hidden
        yield self._normalize(hidden, residual)
        *projections, output = attention
        yield from self._project(projections, residual)
        # The caller references the input of attention and of the feed-forward network until they have run.
        held = residual + self._unkept_input(projections)
        yield from self._attend(held)
        yield from self._linear(
            output, held=held, shared=keeps_output(layer.attention, self._how, self._row), alone=True
        )
        if layer.norms == 4:
            yield self._normalize(hidden, residual)
        yield self._normalize(hidden, residual)
        yield from self._feed_forward(network, residual)
        if layer.norms == 4:
            yield self._normalize(hidden, residual)

    def _normalize(self, width: int, held: float, heads: int = 1) -> Step:
        """A normalization; ``heads`` of them per token if it is over the features of a head."""
        return norm_step(self._norm, self._how, width, held, heads=heads, trained=self._adapters.weights)

    # Linear layers

    def _form(self, linear: Linear) -> LinearForm:
        adapters, how = self._adapters, self._how
        if adapters.weights:
            return "trained"
        if linear.name not in adapters.targets:
            return "frozen"
        plain = not adapters.dora and not adapters.paired
        return "fused" if how.fused_layers and plain else "peft"

    def _keeps_input(self, linear: Linear) -> bool:
        """Whether a linear layer keeps its input unchanged, which other steps may share."""
        form = self._form(linear)
        if form == "trained":
            return True
        private = form == "peft" and self._how.private_inputs and self._how.autocast
        return form != "frozen" and not self._adapters.dropout and not private

    def _linear(self, linear: Linear, *, held: float, shared: bool, alone: bool = False) -> Iterator[Step]:
        """A linear layer with its adapter, if it has one.

        Args:
            linear: The layer.
            held: Bytes per token alive meanwhile, without its input.
            shared: Whether an earlier step keeps the same input.
            alone: Whether no other layer reads the same input.
        """
        how, a, form = self._how, self._how.bytes, self._form(linear)
        held += 0 if self._keeps_input(linear) or (form == "frozen" and shared) else a * linear.inputs
        if form == "fused":
            yield self._fused_adapter(linear, held, shared, alone)
            return
        workspace = a * linear.weights if how.quantized else 0
        yield Step(
            linear.name,
            beside=held + a * linear.outputs,
            beside_once=workspace,
            beside_backward=a * (linear.outputs + 2 * linear.inputs),
            beside_backward_once=workspace,
        )
        if form == "trained":
            # The gradient of the weights needs the input; it is computed together with that of the input.
            yield Step(
                f"{linear.name} weights",
                kept=0 if shared else a * linear.inputs,
                beside=held + a * linear.outputs,
                beside_backward=a * (linear.outputs + 2 * linear.inputs),
                starts_gradient=True,
            )
        elif form == "peft":
            yield self._peft_adapter(linear, held, shared)

    def _fused_adapter(self, linear: Linear, held: float, shared: bool, alone: bool) -> Step:
        """Layer and adapter as one autograd function, which keeps its input and the adapter's intermediate."""
        how, a, rank = self._how, self._how.bytes, self._adapters.rank
        kept = a * rank
        if self._adapters.dropout:
            kept += linear.inputs * self._dropped(a)
        elif not shared:
            kept += a * linear.inputs
        workspace = a * linear.weights if (how.quantized or how.merged) and not how.dequantized else 0
        # The gradients of output and input, and if others read the same input, their accumulated gradient.
        backward = a * (linear.outputs + linear.inputs * (1 if alone else 2))
        casts = (a if how.autocast else 0) * rank * linear.inputs + (FP32 + a) * rank * linear.outputs
        return Step(
            f"{linear.name} adapter",
            kept=kept,
            adapter=True,
            beside=held + a * linear.outputs,
            beside_once=max(workspace, casts),
            beside_backward=backward,
            beside_backward_once=max(workspace, casts),
            starts_gradient=True,
        )

    def _peft_adapter(self, linear: Linear, held: float, shared: bool) -> Step:
        how, a, rank = self._how, self._how.bytes, self._adapters.rank
        private = how.private_inputs and how.autocast
        # A frozen adapter keeps the casts of its weights, and nothing of its input.
        pairs = 2 if self._adapters.paired else 1
        kept, once = a * rank, 0
        # The layer's own output, the adapter's, and that scaled.
        beside = held + 3 * a * linear.outputs
        backward = a * (linear.outputs + 2 * linear.inputs)
        if private:
            beside += FP32 * linear.inputs
            backward += FP32 * linear.inputs
        if self._adapters.dropout:
            kept += linear.inputs * self._dropped(FP32 if private else a)
            beside += FP32 * linear.inputs if private else 0
        elif private or not shared:
            kept += a * linear.inputs
        if self._adapters.dora:
            kept += 2 * a * linear.outputs
            beside += 2 * a * linear.outputs
            # The norm of the adapted weights: the weights themselves, the adapters' product and their sum in fp32.
            once = FP32 * 3 * linear.weights
        return Step(
            f"{linear.name} adapter",
            kept=kept,
            kept_once=a * rank * (linear.inputs + linear.outputs) * pairs if how.autocast else 0,
            adapter=True,
            beside=beside,
            beside_once=once,
            beside_backward=backward,
            unfinished=2 * a * linear.outputs,
            starts_gradient=True,
        )

    def _dropped(self, width: int) -> int:
        """Bytes kept per input feature of an adapter with dropout: the mask, and the remaining input; on the CPU the
        mask has the input's dtype, ``width`` bytes per element.
        """
        return (1 if self._how.cuda else width) + self._how.bytes

    def _unkept_input(self, linears: list[Linear]) -> float:
        """Bytes per token of the input that these layers share, if none of them keeps it unchanged."""
        return 0 if any(map(self._keeps_input, linears)) else self._how.bytes * linears[0].inputs

    def _project(self, projections: list[Linear], residual: float) -> Iterator[Step]:
        held, shared = residual, False
        for linear in projections:
            yield from self._linear(linear, held=held, shared=shared)
            shared = shared or self._keeps_input(linear)
            held += self._how.bytes * linear.outputs

    # Attention

    def _attend(self, residual: float) -> Iterator[Step]:
        a, attention = self._how.bytes, self._layer.attention
        queries, keys = attention.queries, attention.keys
        if attention.normed:
            projected = residual + a * (queries + 2 * keys)
            yield self._normalize(queries, projected, attention.heads)
            yield self._normalize(keys, projected, attention.kv_heads)
        yield attention_step(attention, self._how, self._row, residual)

    # Feed-forward networks

    def _feed_forward(self, network: list[Linear], residual: float) -> Iterator[Step]:
        a, width = self._how.bytes, self._layer.width
        if self._is_gated_again(network):
            yield from self._gated_feed_forward(network, residual)
            return
        gate, up, down = network
        held = residual + self._unkept_input([gate, up])
        yield from self._linear(gate, held=residual, shared=False)
        yield Step("activation", kept=2 * a * width, beside=held)
        yield from self._linear(up, held=residual, shared=self._keeps_input(gate))
        yield Step("gate", kept=a * width, beside=held + a * width, beside_backward=3 * a * width)
        yield from self._linear(down, held=held, shared=False, alone=True)

    def _is_gated_again(self, network: list[Linear]) -> bool:
        """Whether the worker's function makes the gated product again in backward."""
        forms = {self._form(linear) for linear in network}
        return self._how.fused_layers and forms <= {"fused", "frozen"}

    def _gated_feed_forward(self, network: list[Linear], residual: float) -> Iterator[Step]:
        """A gated network of which the projections alone are kept."""
        a, width = self._how.bytes, self._layer.width
        gate, up, down = network
        held = residual + self._unkept_input([gate, up])
        yield from self._linear(gate, held=residual, shared=False)
        yield from self._linear(up, held=residual + a * width, shared=self._keeps_input(gate))
        # The activated gate and the product; in backward the product, its gradient and that of a projection.
        yield Step("gate", kept=2 * a * width, beside=held + 2 * a * width, beside_backward=3 * a * width)
        yield from self._gated_down(down, held)

    def _gated_down(self, down: Linear, held: float) -> Iterator[Step]:
        """The down projection; with an adapter it keeps the dropout of its input, a byte for each feature."""
        a, width = self._how.bytes, down.inputs
        for step in self._linear(down, held=held, shared=True, alone=True):
            if self._form(down) == "frozen":
                yield step
                continue
            dropped = self._adapters.dropout
            kept = a * self._adapters.rank + (width if dropped else 0)
            yield replace(step, kept=kept, beside=step.beside + a * width * (2 if dropped else 1))

"""What one decoder layer keeps for backward, and what it needs beside that while it runs.

A layer is written down as the steps of its forward pass, in order. The figures are those of eager PyTorch with
transformers' models and PEFT's adapters, operation by operation; tests compare them with what autograd really saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.memory.architecture import Attention, Experts, Layer, Linear

FP32 = 4
#: What is noted of a token for each expert that sees it: places, weights and choices.
ROUTED = 64


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are held.

    Args:
        bytes: Of an element of the hidden states.
        autocast: Adapters are fp32 and are cast for each product.
        private_inputs: Every adapter keeps a copy of its input of its own. PEFT casts the input to fp32 first, except
            on quantized layers where it sees that autocast is on, which it looks for on CUDA only.
        quantized: The linear layers are NF4 and are dequantized for each product.
        cuda: It runs on a GPU, whose kernels keep other things than the CPU's in a few places.
    """

    bytes: int
    autocast: bool
    private_inputs: bool
    quantized: bool
    cuda: bool


@dataclass(frozen=True)
class Adapters:
    """What is trained of a layer.

    PEFT's adapters on linear layers: rank, dropout and DoRA, the names of the layers that get some, and whether a
    frozen adapter lies beside each; or, with ``weights``, the layer's own weights.
    """

    rank: int
    dropout: float
    dora: bool
    targets: frozenset[str]
    paired: bool = False
    weights: bool = False


@dataclass(frozen=True)
class Step:
    """One step of a layer's forward pass.

    Bytes for each token, for each token and token of its row (attention scores), and once for the layer.
    """

    name: str
    kept: float = 0.0
    kept_scores: float = 0.0
    kept_once: float = 0.0
    adapter: bool = False
    """Whether what is kept is kept for an adapter."""
    beside: float = 0.0
    """Alive during the step only, besides everything kept up to its end."""
    beside_scores: float = 0.0
    beside_once: float = 0.0
    beside_backward: float = 0.0
    """Alive while its gradient is made, besides everything kept up to its end."""
    beside_backward_scores: float = 0.0
    beside_backward_once: float = 0.0
    unfinished: float = 0.0
    """What of ``beside`` is not reached when the layer is run again and this is the last step that keeps anything."""
    starts_gradient: bool = False
    """Whether a gradient is needed from here on, where none was before."""


class LayerSteps:
    """The forward pass of one layer.

    Args:
        layer: Its shapes.
        hidden: Features between the layers.
        arithmetic: How numbers are held.
        adapters: What is trained.
        row: Tokens of the longest row, padding included: a sliding window shorter than it needs a mask.
    """

    def __init__(self, layer: Layer, hidden: int, arithmetic: Arithmetic, adapters: Adapters, row: int) -> None:
        self._layer = layer
        self._hidden = hidden
        self._how = arithmetic
        self._adapters = adapters
        self._row = row

    def steps(self) -> list[Step]:
        """The steps in the order of the forward pass."""
        return list(self._steps())

    def _steps(self) -> Iterator[Step]:
        layer, a, hidden = self._layer, self._how.bytes, self._hidden
        by_name = {linear.name: linear for linear in layer.linears}
        attention = [linear for linear in layer.linears if "mlp" not in linear.name]
        network = [by_name[linear.name] for linear in layer.linears if "mlp" in linear.name]
        residual = a * hidden
        yield self._normalize(hidden, residual)
        *projections, output = attention
        yield from self._project(projections, residual)
        # The caller holds the input of attention and of the feed-forward network until they have run.
        held = residual + self._unkept_input(projections)
        yield from self._attend(layer.attention, held)
        # The kernel keeps its output; only the plain products of eager attention do not.
        kept_already = layer.attention.kernel == "sdpa" and not self._scores(layer.attention)
        yield from self._linear(output, held=held, shared=kept_already)
        yield from self._drop(layer.dropout, hidden)
        if layer.norms == 4:
            yield self._normalize(hidden, residual)
        yield self._normalize(hidden, residual, again=layer.parallel)
        if layer.experts is not None:
            if network:
                yield from self._feed_forward(network, residual)
            yield from self._mix(layer.experts, residual)
        else:
            yield from self._feed_forward(network, residual)
        yield from self._drop(layer.dropout, hidden)
        if layer.norms == 4:
            yield self._normalize(hidden, residual)

    def _normalize(self, width: int, held: float, heads: int = 1, *, again: bool = False) -> Step:
        """A normalization; ``heads`` of it for each token when it goes over the features of a head.

        ``again`` when its input is one that has been kept already.
        """
        a = self._how.bytes
        if self._layer.norm == "layer":
            if self._how.cuda and self._how.autocast:
                # Autocast runs it in fp32 on CUDA and gives fp32, which each product casts again.
                return Step("norm", kept=FP32 * width + 2 * FP32, beside=held + (FP32 + a) * width)
            # It keeps the residual stream itself and two numbers a token.
            kept = 2 * a + (0 if again else a * width)
            return Step("norm", kept=kept, beside=held + a * width, beside_backward=3 * a * width)
        # A weight that is trained needs what it is multiplied with, too.
        return Step(
            "norm",
            kept=FP32 * (width + heads) + (a * width if self._adapters.weights else 0),
            beside=held + (FP32 + 2 * a) * width,
            beside_backward=5 * FP32 * width,
        )

    def _linear(self, linear: Linear, *, held: float, shared: bool) -> Iterator[Step]:
        """A linear layer with its adapter, where it has one.

        Args:
            linear: The layer.
            held: Bytes a token of what else is alive meanwhile, its input left out.
            shared: Whether an earlier step has kept the same input already.
        """
        how, a, rank = self._how, self._how.bytes, self._adapters.rank
        private = how.private_inputs and how.autocast
        adapted = linear.name in self._adapters.targets
        if self._adapters.weights:
            adapted, private = True, False
        own_input = private or bool(self._adapters.dropout) or not (adapted or shared)
        held += a * linear.inputs if own_input else 0
        workspace = a * linear.weights if how.quantized else 0
        backward = a * (linear.outputs + 2 * linear.inputs)
        yield Step(
            linear.name,
            beside=held + a * linear.outputs,
            beside_once=workspace,
            beside_backward=backward,
            beside_backward_once=workspace,
        )
        if self._adapters.weights:
            # The gradient of the weights needs the input; it is made beside that of the input.
            yield Step(
                f"{linear.name} weights",
                kept=0 if shared else a * linear.inputs,
                beside=held + a * linear.outputs,
                beside_backward=a * (linear.outputs + 2 * linear.inputs),
                starts_gradient=True,
            )
            return
        if not adapted:
            return
        # A frozen adapter keeps the casts of its weights, and nothing of its input.
        pairs = 2 if self._adapters.paired else 1
        kept, once = a * rank, 0
        # The layer's own output, the adapter's, and that scaled.
        beside = held + 3 * a * linear.outputs
        if private:
            beside += FP32 * linear.inputs
            backward += FP32 * linear.inputs
        if self._adapters.dropout:
            # What was dropped, and the input that is left; on the CPU the former is held in the input's own numbers.
            width = FP32 if private else a
            kept += linear.inputs * ((1 if how.cuda else width) + a)
            beside += FP32 * linear.inputs if private else 0
        elif private or not shared:
            kept += a * linear.inputs
        if self._adapters.dora:
            kept += 2 * a * linear.outputs
            beside += 2 * a * linear.outputs
            # The norm of the adapted weights: the weights themselves, the adapters' product and their sum in fp32.
            once = FP32 * 3 * linear.weights
        yield Step(
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

    def _unkept_input(self, linears: list[Linear]) -> float:
        """Bytes a token of the input that these layers share, where none of them keeps it as it is."""
        if self._adapters.weights:
            return 0
        kept = any(linear.name in self._adapters.targets for linear in linears) and not self._adapters.dropout
        private = self._how.private_inputs and self._how.autocast
        return 0 if kept and not private else self._how.bytes * linears[0].inputs

    def _project(self, projections: list[Linear], residual: float) -> Iterator[Step]:
        held, shared = residual, False
        for linear in projections:
            yield from self._linear(linear, held=held, shared=shared)
            shared = shared or self._adapters.weights or linear.name in self._adapters.targets
            held += self._how.bytes * linear.outputs

    def _attend(self, attention: Attention, residual: float) -> Iterator[Step]:
        a, queries, keys = self._how.bytes, attention.queries, attention.keys
        projected = residual + a * (queries + 2 * keys)
        if attention.normed:
            per_head = attention.normed == "head"
            yield self._normalize(queries, projected, attention.heads if per_head else 1)
            yield self._normalize(keys, projected, attention.kv_heads if per_head else 1)
        # After the rotation queries and keys are new tensors; the values are those that the projection gave, and hold
        # all of it alive where it is a fused one. Without a rotation all three are parts of it.
        kept = a * (queries + keys) if attention.rotary else 0
        kept += a * ((queries + 2 * keys) if attention.fused else keys)
        beside = residual + a * (queries + keys) + a * queries
        if attention.kernel == "eager":
            yield self._eager(attention, beside)
            return
        if self._scores(attention):
            yield Step(
                "attention",
                kept=3 * FP32 * queries + kept - a * (queries + 2 * keys),
                kept_scores=(3 if attention.dropout else 1) * FP32 * attention.heads,
                beside=beside,
                beside_scores=FP32 * attention.heads,
            )
            return
        kept += a * queries + FP32 * attention.heads
        if attention.window is not None and attention.window < self._row:
            # With a mask, keys and values are repeated for every query head.
            kept += 2 * a * (queries - keys) if attention.heads != attention.kv_heads else 0
        yield Step("attention", kept=kept, beside=beside)

    def _scores(self, attention: Attention) -> bool:
        """Whether SDPA makes scores, in fp32: the CPU has no kernel with dropout, or for values narrower than keys."""
        return bool(attention.dropout or attention.uneven) and not self._how.cuda

    def _eager(self, attention: Attention, beside: float) -> Step:
        a, queries = self._how.bytes, attention.queries
        # The softmax is taken in fp32 and cast back, which makes no second tensor of fp32 scores.
        scores = attention.heads * (FP32 + (a if self._how.autocast else 0) + (a if attention.softcap else 0))
        return Step(
            "attention",
            kept=3 * a * queries,
            kept_scores=scores,
            beside=beside + 2 * a * queries,
            beside_scores=attention.heads * (FP32 + a),
            beside_backward=3 * a * queries,
            beside_backward_scores=attention.heads * (2 * FP32 + a),
        )

    def _feed_forward(self, network: list[Linear], residual: float) -> Iterator[Step]:
        layer, a, width = self._layer, self._how.bytes, self._layer.width
        held = residual + self._unkept_input(network[:-1])
        if layer.gate == "separate":
            gate, up, down, *more = network
            yield from self._linear(gate, held=residual, shared=False)
            yield Step("activation", kept=2 * a * width, beside=held)
            both = self._adapters.weights or gate.name in self._adapters.targets
            yield from self._linear(up, held=residual, shared=both)
            yield Step("gate", kept=a * width, beside=held + a * width)
            yield from self._linear(down, held=held, shared=False)
            for linear in more:
                shared = bool({gate.name, up.name} & self._adapters.targets)
                yield from self._linear(linear, held=held, shared=shared)
            return
        first, second = network
        yield from self._linear(first, held=residual, shared=False)
        if layer.gate == "fused":
            yield Step("activation", kept=3 * a * width, beside=held + a * width)
        else:
            yield Step("activation", kept=layer.activation_copies * a * width, beside=held + a * width)
        yield from self._linear(second, held=held, shared=False)

    def _mix(self, experts: Experts, residual: float) -> Iterator[Step]:
        a, tokens = self._how.bytes, experts.active
        # Gate and inner values, the weighted outputs, and the router's choices and probabilities.
        inner = (6 if experts.clamped else 3) * a * experts.width
        kept = tokens * (inner + a * experts.hidden + ROUTED) + 2 * FP32 * experts.count
        once = 0.0
        if self._experts_adapted(experts):
            kept += tokens * (a * experts.hidden + a * experts.width) + a * experts.hidden
            # The adapted matrices are made anew, for all experts at once.
            once = a * 3 * experts.count * experts.hidden * experts.width
        yield Step(
            "experts",
            kept=kept,
            kept_once=once,
            beside=residual + 2 * a * experts.hidden * tokens,
            beside_once=FP32 * 2 * experts.count * experts.hidden * experts.width if once else 0.0,
            beside_backward=tokens * inner if experts.clamped else 0.0,
            starts_gradient=bool(once),
        )

    def _experts_adapted(self, experts: Experts) -> bool:
        return experts.adapted and "mlp.experts" in self._adapters.targets

    def _drop(self, share: float, width: int) -> Iterator[Step]:
        """Dropout of the model itself."""
        if share:
            yield Step("dropout", kept=(1 if self._how.cuda else self._how.bytes) * width)


@dataclass(frozen=True)
class LayerMemory:
    """A layer's activations in bytes, for given numbers of tokens.

    Args:
        kept: Kept for backward, those for the adapters left out.
        adapters: Kept for the adapters, the casts of their weights among them.
        forward: The most that is alive at once in the forward pass, what is kept by then included.
        again: The same for a forward pass that is run a second time for its activations only, and the backward pass
            that follows at once.
        backward: The same for the backward pass alone, when it was not run again.
        casts: Copies of the adapters' weights in the dtype of the products; part of ``adapters``.
        scores: Attention scores; part of ``kept``.
    """

    kept: int
    adapters: int
    forward: int
    again: int
    backward: int
    casts: int
    scores: int


def layer_memory(steps: list[Step], tokens: int, row: int, *, with_gradient: bool) -> LayerMemory:
    """Sum a layer's steps up.

    Args:
        steps: Of its forward pass.
        tokens: In the micro-batch, padding included.
        row: Tokens of a row, padding included.
        with_gradient: Whether what comes before the layer needs a gradient, so that all of it keeps something.
    """
    kept = adapters = casts = scores = forward = again = backward = 0.0
    last = max((place for place, step in enumerate(steps) if step.kept), default=0)
    for place, step in enumerate(steps):
        with_gradient = with_gradient or step.starts_gradient
        if with_gradient:
            of_scores = tokens * row * step.kept_scores
            saved = tokens * step.kept + of_scores + step.kept_once
            scores += of_scores
            if step.adapter:
                adapters += saved
                casts += step.kept_once
            else:
                kept += saved
            beside = tokens * step.beside_backward + tokens * row * step.beside_backward_scores
            backward = max(backward, kept + adapters + beside + step.beside_backward_once)
        alive = kept + adapters + tokens * step.beside + tokens * row * step.beside_scores + step.beside_once
        forward = max(forward, alive)
        if place <= last:
            again = max(again, alive - (tokens * step.unfinished if place == last else 0))
    return LayerMemory(
        kept=int(kept),
        adapters=int(adapters),
        forward=int(forward),
        again=int(max(again, backward)),
        backward=int(backward),
        casts=int(casts),
        scores=int(scores),
    )

"""Estimated time of an optimizer step, to compare ways of fitting it into memory.

The sum of matrix products, attention, dequantization of 4-bit weights, and elementwise kernels, each by its amount of
work and a rate. The ratios decide: another micro-batch dequantizes the weights again, and recomputation runs the
forward pass of a layer again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.memory.calibration import Rates

#: Bytes read and written by elementwise kernels in the forward pass and in backward, for each byte that is kept for
#: backward; estimated from the kernels of a Llama layer.
_MOVED_FORWARD, _MOVED_BACKWARD = 4.0, 6.0
#: Bytes read and written for each weight that is dequantized: half a byte of NF4, and its 16-bit copy.
_DEQUANTIZED = 2.5
#: Work of attention's backward pass, as a multiple of its forward pass.
_ATTENTION_BACKWARD = 2.5
#: Launches to recompute a layer, as a share of the launches of its forward and backward pass.
_LAUNCHES_AGAIN = 0.4
#: Bytes read and written for each logit by torch's own operations: casts, softmax, and the gradients of both.
LOGIT_MOVED = 36
#: Passes of the kernel of the loss over the logits: two readings, and the gradient.
LOGIT_PASSES = 3
#: Bytes read and written for each parameter of an adapter in an update: weight, gradient, two moments.
_UPDATED = 28
#: The same for each trained weight of the model: times the bytes of its dtype, and those of states and of copies in
#: fp32. Norm, gradient, and the weight twice; AdamW with fp32 states has a gradient and an update in fp32 too, Lion an
#: update in the weight's dtype. AdamW with 8-bit states is one kernel.
_UPDATED_WEIGHT = {"adamw": (4, 40), "adafactor": (4, 36), "lion_8bit": (8, 2)}
_UPDATED_IN_ONE = (4, 4)


@dataclass(frozen=True)
class LayerWork:
    """Work of a decoder layer, or of several.

    Args:
        weights: Weights that a token is multiplied with, including the active experts and the adapters.
        frozen: Weights of them that are frozen, so that they get no gradient.
        dequantized: Weights that are dequantized for each pass, including every expert that receives a token.
        attention: Operations of the forward pass of attention for each pair of tokens of a row: two products, of which
            causality leaves half.
        moved: Bytes kept for backward for each token, from which those read and written follow.
        layers: Number of layers.
        spread: Number of matrices among which the tokens of such a product are shared out, averaged over its weights:
            1 for a linear layer, total over active ones for experts.
    """

    weights: float
    frozen: float
    dequantized: float
    attention: float
    moved: float
    layers: int = 1
    spread: float = 1.0


@dataclass(frozen=True)
class HeadWork:
    """Work of the head and the loss.

    Args:
        hidden: Width of the hidden states.
        vocabulary: Logits of a position.
        supervised: Share of the tokens that are in the loss.
        positions: Most positions whose logits are computed at once.
        moved: Bytes read and written for each logit, beside the products.
        trained: Whether the head is trained, so that its logits are computed again for the gradient of its weights.
    """

    hidden: int
    vocabulary: int
    supervised: float
    positions: int
    moved: float
    trained: bool = False

    def seconds(self, tokens: int, rates: Rates) -> float:
        """Time of a micro-batch: the product forward, that for the gradient of its input, and the loss between."""
        learned = max(self.supervised * tokens, 1.0)
        products = 2.0 * (4 if self.trained else 2) * self.hidden * _thinness(min(learned, self.positions), rates)
        return learned * self.vocabulary * (products / rates.matrix + self.moved / rates.memory)


@dataclass(frozen=True)
class StepTime:
    """Estimated time of an optimizer step.

    Args:
        seconds: Its duration.
        tokens: Its tokens, padding included.
        micro_batches: Its micro-batches.
        source: Origin of the rates, for people.
        moved_seconds: Time of copying experts from host memory, most of it beside the computation.
    """

    seconds: float
    tokens: int
    micro_batches: int
    source: str
    moved_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Estimated tokens a second."""
        return self.tokens / self.seconds


def step_time(
    layers: Sequence[LayerWork],
    batches: Sequence[tuple[int, int]],
    rates: Rates,
    *,
    kept_layers: int,
    head: HeadWork,
    updated: int,
    from_host: int = 0,
) -> StepTime:
    """Estimated time of an optimizer step.

    Args:
        layers: Decoder layers, in order.
        batches: Sequences and their length for each micro-batch of the step; not empty.
        rates: Rates of the device.
        kept_layers: Number of layers, the last ones, whose activations are kept.
        head: The head and the loss.
        updated: Bytes read and written by the update, as :func:`update_traffic`.
        from_host: Bytes of weights that come from host memory for each micro-batch.
    """
    again = layers[: len(layers) - kept_layers]
    seconds, moved = updated / rates.memory, from_host / rates.host
    for rows, length in batches:
        tokens = rows * length
        # Copies overlap with the computation: the slower of the two decides.
        seconds += max(_pass_seconds(_sum(layers), _sum(again), tokens, length, rates), moved)
        seconds += head.seconds(tokens, rates)
    tokens = sum(rows * length for rows, length in batches)
    return StepTime(seconds, tokens, len(batches), rates.source, moved * len(batches))


def update_traffic(trained: int, optimizer: str, width: int | None) -> int:
    """Bytes read and written by an update.

    Args:
        trained: Number of trained parameters.
        optimizer: As ``train.optimizer``.
        width: Bytes of an element of the weights that are trained; None for adapters.
    """
    if width is None:
        return _UPDATED * trained
    times, further = _UPDATED_WEIGHT.get(optimizer, _UPDATED_IN_ONE)
    return trained * (times * width + further)


def _thinness(tokens: float, rates: Rates) -> float:
    """Factor by which matrix products of few tokens are slower."""
    return 1 + rates.half / tokens


def _sum(layers: Sequence[LayerWork]) -> LayerWork:
    weights = sum(layer.weights for layer in layers)
    return LayerWork(
        weights=weights,
        frozen=sum(layer.frozen for layer in layers),
        dequantized=sum(layer.dequantized for layer in layers),
        attention=sum(layer.attention for layer in layers),
        moved=sum(layer.moved for layer in layers),
        layers=sum(layer.layers for layer in layers),
        spread=sum(layer.spread * layer.weights for layer in layers) / weights if weights else 1.0,
    )


def _pass_seconds(once: LayerWork, again: LayerWork, tokens: int, length: int, rates: Rates) -> float:
    """Forward and backward pass of a micro-batch through the layers, with the recomputation of some of them."""
    # Forward, gradient of the input, gradient of the weights if they are trained; and forward again.
    products = 2 * tokens * (3 * once.weights - once.frozen + again.weights)
    pairs = tokens * length * (once.attention * (1 + _ATTENTION_BACKWARD) + again.attention)
    moved = tokens * (once.moved * (_MOVED_FORWARD + _MOVED_BACKWARD) + again.moved * _MOVED_FORWARD)
    moved += _DEQUANTIZED * (2 * once.dequantized + again.dequantized)
    work = products * _thinness(tokens / once.spread, rates) / rates.matrix
    work += pairs / (rates.matrix * rates.attention) + moved / rates.memory
    launches = rates.launch * (once.layers + _LAUNCHES_AGAIN * again.layers)
    return max(work, launches)


def touched_experts(count: int, active: int, tokens: int) -> float:
    """Expected number of a layer's experts that get any token, if tokens are sent to all of them alike.

    Args:
        count: Number of experts.
        active: Experts per token.
        tokens: Tokens of a micro-batch.
    """
    return count * (1 - (1 - min(active / count, 1.0)) ** tokens)

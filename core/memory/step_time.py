"""Step time: an estimate of what an optimizer step takes, to compare ways of fitting it into memory.

The sum of matrix products, attention, dequantization of 4-bit weights, and elementwise kernels, each by its amount of
work and a rate. The ratios decide: another micro-batch dequantizes the weights again, and recomputation runs the
forward pass of a layer again. The rates are estimates unless measured on the device (:mod:`core.memory.calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.memory.calibration import Calibration

#: Bytes read and written by elementwise kernels in the forward pass and in backward, for each byte that is kept for
#: backward; estimated from the kernels of a Llama layer.
_MOVED_FORWARD, _MOVED_BACKWARD = 4.0, 6.0
#: Bytes read and written for each weight that is dequantized: half a byte of NF4, and its 16-bit copy.
_DEQUANTIZED = 2.5
#: Work of attention's backward pass, as a multiple of its forward pass.
_ATTENTION_BACKWARD = 2.5
#: Launches of a layer's recomputation, as a share of those of its forward and backward pass.
_LAUNCHES_AGAIN = 0.4
#: Bytes read and written for each trained parameter in an update: weight, gradient, two moments.
_UPDATED = 28


#: Bytes a second from pinned host memory over PCIe 4.0 with 16 lanes, of 31.5 GB/s by its specification; assumed.
HOST_RATE = 20e9


@dataclass(frozen=True)
class Rates:
    """Rates of a device.

    Args:
        matrix: Floating-point operations a second of large matrix products.
        memory: Bytes a second read and written by elementwise kernels.
        half: Tokens of a micro-batch at which a matrix product reaches half of that rate.
        attention: Rate of attention, as a share of that of matrix products.
        launch: Seconds in which the CPU launches the kernels of a layer, forward and backward; they overlap with the
            device's work.
        source: Origin of the figures, for people: ``estimated``, or where they were measured.
        host: Bytes a second that come from pinned host memory.
        host_source: Origin of that.
    """

    matrix: float
    memory: float
    half: int
    attention: float
    launch: float
    source: str = "estimated"
    host: float = HOST_RATE
    host_source: str = "assumed"


#: Cards by a part of their name: rates reached in 16-bit products and by elementwise kernels; estimates.
_CARDS = {"4090": (150e12, 0.85e12), "3090": (63e12, 0.75e12)}
#: A card of unknown name, and a CPU in bf16: two cores with AVX512-BF16, measured (docs/performance.md).
_ANY_CARD, _CPU = (63e12, 0.75e12), (4.1e11, 2.5e10)
#: Speed of a CPU's products in fp32, as a share of that in bf16.
_CPU_FP32 = 0.47


def rates_of(device: str, calibration: Calibration | None, *, cuda: bool, wide: bool) -> Rates:
    """Rates of a device.

    Args:
        device: Name of the device; empty if unknown.
        calibration: Rates measured on it, if any.
        cuda: Whether it is a GPU.
        wide: Whether it computes in fp32.
    """
    known = next((rates for name, rates in _CARDS.items() if name in device), _ANY_CARD) if cuda else _CPU
    matrix, memory = known
    source = "estimated"
    if calibration is not None and calibration.matrix_rate is not None:
        matrix, source = calibration.matrix_rate, calibration.source
        memory = calibration.memory_rate or memory
    if cuda:
        host, host_source = HOST_RATE, "assumed"
        if calibration is not None and calibration.host_rate is not None:
            host, host_source = calibration.host_rate, calibration.source
        # Products in fp32 do not use the tensor cores.
        return Rates(matrix / (4 if wide else 1), memory, 128, 0.7, 1.9e-3, source, host, host_source)
    return Rates(matrix * (_CPU_FP32 if wide else 1), memory, 400, 0.2, 0.0, source)


def is_known_speed(device: str, calibration: Calibration | None) -> bool:
    """True if the rates of a device are its own, measured or estimated, and not those of another of its kind.

    Args:
        device: Name of the device; empty if unknown.
        calibration: Rates measured on it, if any.
    """
    measured = calibration is not None and calibration.matrix_rate is not None
    return measured or any(name in device for name in _CARDS)


@dataclass(frozen=True)
class LayerWork:
    """Work of a decoder layer, or of several.

    Args:
        weights: Weights that a token is multiplied with: those of the active experts, and those of adapters.
        frozen: Weights of them that are frozen, so that they get no gradient.
        dequantized: Weights that are dequantized for each pass; of experts those that any token is sent to.
        attention: Operations of the forward pass of attention for each pair of tokens of a row.
        moved: Bytes kept for backward for each token, from which those read and written follow.
        layers: Number of layers that it is the work of.
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
class StepTime:
    """Estimated time of an optimizer step.

    Args:
        seconds: Its duration.
        tokens: Its tokens, padding included.
        micro_batches: Its micro-batches.
        source: Origin of the rates, for people.
        moved_seconds: Time that experts are on their way from host memory, most of it beside what is computed.
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
    head: float,
    trained: int,
    from_host: int = 0,
) -> StepTime:
    """Estimated time of an optimizer step.

    Args:
        layers: Decoder layers, in order.
        batches: Sequences and their length for each micro-batch of the step; not empty.
        rates: Rates of the device.
        kept_layers: Number of layers, the last ones, whose activations are kept.
        head: Operations of the head and the loss for each token, forward and backward.
        trained: Number of trained parameters.
        from_host: Bytes of weights that come from host memory for each micro-batch.
    """
    again = layers[: len(layers) - kept_layers]
    seconds, moved = _UPDATED * trained / rates.memory, from_host / rates.host
    for rows, length in batches:
        tokens = rows * length
        # Copies go beside what is computed: the slower of the two decides.
        seconds += max(_pass_seconds(_sum(layers), _sum(again), tokens, length, rates), moved)
        seconds += head * tokens * _thinness(tokens, rates) / rates.matrix
    tokens = sum(rows * length for rows, length in batches)
    return StepTime(seconds, tokens, len(batches), rates.source, moved * len(batches))


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


def attention_work(queries: int) -> float:
    """Operations of attention's forward pass for each pair of tokens of a row: two products, of which causality leaves
    half.

    Args:
        queries: Features of all query heads.
    """
    return 2.0 * queries


def head_work(vocabulary: int, hidden: int, learned: float) -> float:
    """Operations of the head for each token: the product forward and that for the gradient of its input.

    Args:
        vocabulary: Size of the vocabulary.
        hidden: Features of the hidden states.
        learned: Share of the tokens in the loss.
    """
    return 2 * 2.0 * vocabulary * hidden * learned

"""Arithmetic of a run, and sizes in bytes of quantized matrices, optimizer states, offloaded inputs and answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from core.config.schema import MethodSection
from core.config.targets import adapts_experts, adapts_linear
from core.models.architecture.architecture import Architecture, Layer

FP32 = 4
#: NF4: half a byte a weight; for each block of 64 weights one byte, and for each 256 of these blocks four (QLoRA,
#: arXiv 2305.14314, with bitsandbytes' block sizes).
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256
#: Code books and offset of one quantized matrix.
NF4_TABLES = (16 + 256 + 1) * FP32
#: Smallest layer input that is offloaded; moving a smaller one would gain nothing.
OFFLOAD_SMALLEST = 1 << 20
#: Layer inputs on the device at once with activation offloading: that of the running layer, and in backward the next.
OFFLOAD_IN_FLIGHT = 2
#: Most bytes of experts that are dequantized at once on a GPU: enough for large grouped products.
EXPERT_BUFFER = 256 << 20
#: Bytes of a block of pinned host memory for experts: a power of two, as torch rounds up to one.
HOST_SLAB = 256 << 20
#: Layers whose experts are on the GPU at once if they live in host memory: the running layer, and the next.
EXPERT_LAYERS = 2
#: Name of a layer's experts among the targets of its adapters.
EXPERTS = "mlp.experts"
#: Optimizers that keep one state as large as the parameter; the others keep two.
_SINGLE = ("lion_8bit",)
#: Tensors with fewer elements have 32-bit optimizer states; blocks that share a scale in 8-bit states.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic of a run: dtypes, quantization, kernels.

    Args:
        bytes: Bytes of an element of the hidden states.
        autocast: Whether adapters are fp32 and cast for each product.
        quantized: Whether the linear layers are NF4 and dequantized for each product.
        cuda: Whether it runs on a GPU, whose kernels keep other tensors than the CPU's in a few places.
        fused_layers: Whether adapters and norms use the worker's own functions where supported.
        short_attention: Whether attention of short rows uses them.
        fused_attention: Whether attention goes through the worker's function, whatever the rows.
        flash: Whether a GPU's flash attention knows the dtype and the card.
        dequantized: Whether linear layers of these functions keep their weights dequantized, or merged.
        merged: Whether they are merged with their adapters for each product, as ``method.train_for`` does.
    """

    bytes: int
    autocast: bool
    quantized: bool
    cuda: bool
    fused_layers: bool = False
    short_attention: bool = False
    dequantized: bool = False
    fused_attention: bool = False
    flash: bool = True
    merged: bool = False


def quantized_bytes(weights: int) -> int:
    """Bytes of a matrix quantized by bitsandbytes: NF4 with double quantization.

    Args:
        weights: Number of elements.
    """
    blocks = math.ceil(weights / NF4_BLOCK)
    return math.ceil(weights / 2) + blocks + FP32 * math.ceil(blocks / NF4_OUTER_BLOCK) + NF4_TABLES


def quantized_experts_bytes(count: int, weights: int) -> int:
    """Bytes of the stacked matrices of experts, each quantized by itself, with shared code books.

    Args:
        count: Number of experts.
        weights: Number of elements of all of them together.
    """
    one = weights // count
    # The code books exist once, the offset for each.
    return count * (quantized_bytes(one) - NF4_TABLES + FP32) + NF4_TABLES - FP32


def experts_at_once(weights: int, width: int) -> int:
    """Number of experts that are dequantized together on a GPU, for one grouped product.

    Args:
        weights: Elements of one expert's matrix.
        width: Bytes of an element of the arithmetic.
    """
    return max(1, EXPERT_BUFFER // (weights * width))


def pinned_bytes(layers: int, size: int) -> int:
    """Most pinned host memory for offloaded layer inputs.

    Torch allocates pinned memory in powers of two and never returns it. Micro-batches of fewer tokens have smaller
    blocks of their own, which together are at most as much again.

    Args:
        layers: Number of inputs at once.
        size: Bytes of one input, in the largest micro-batch.
    """
    return 2 * layers * (1 << max(size - 1, 0).bit_length())


def optimizer_bytes(kind: str, elements: int, columns: int = 1) -> int:
    """Bytes of the optimizer states of one trained tensor under ``train.optimizer``.

    Args:
        kind: The optimizer.
        elements: Elements of the tensor.
        columns: Columns of a matrix; 1 for a vector.
    """
    if kind == "adamw":
        return 2 * FP32 * elements + FP32
    if kind == "adafactor":
        # A sum per row and per column, and the size of the whole.
        return FP32 * (elements // columns + columns + 1 if columns > 1 else elements + 1)
    states = 1 if kind == "lion_8bit" else 2
    if elements < SMALLEST_8BIT:
        return states * FP32 * elements
    return states * (elements + FP32 * math.ceil(elements / BLOCK_8BIT))


def states_host_bytes(kind: str, tensors: Iterable[tuple[int, int, int]]) -> int:
    """Most host memory for the optimizer states of a run on a GPU.

    Paged states are in host memory if the GPU's is not enough, at worst all of them. A checkpoint is written tensor by
    tensor: one state at a time is copied to the host; paged states are read in place.

    Args:
        kind: As ``train.optimizer``.
        tensors: Rows, columns and number of the trained tensors of each size.
    """
    sizes = [(optimizer_bytes(kind, rows * columns, columns), count) for rows, columns, count in tensors]
    if kind.startswith("paged_"):
        return sum(size * count for size, count in sizes)
    return max((size for size, count in sizes if count), default=0) // (1 if kind in _SINGLE else 2)


def target_linears(layer: Layer, prefix: str, method: MethodSection) -> frozenset[str]:
    """Linear layers of a decoder layer that get adapters, and :data:`EXPERTS` if its experts do.

    Args:
        layer: The layer.
        prefix: Prefix of its module names: ``model.layers.0``.
        method: The method.
    """
    targets = method.target_modules
    found = {linear.name for linear in layer.linears if adapts_linear(f"{prefix}.{linear.name}", targets)}
    if layer.experts is not None and adapts_experts(method, f"{prefix}.{layer.experts.name}", layer.experts.matrices):
        found.add(EXPERTS)
    return frozenset(found)


def split_by_targets(model: Architecture, method: MethodSection) -> Iterator[tuple[Layer, int, frozenset[str]]]:
    """Layers with the linear layers that get adapters, and the number of consecutive equal layers. A kind of layer is
    split if a pattern takes only some of its layers.

    Args:
        model: The base model.
        method: The method.
    """
    number = 0
    for layer in model.layers:
        # The same names are adapted in all layers of a kind, unless patterns choose by number.
        places = [number] if isinstance(method.target_modules, str) else range(number, number + layer.count)
        found = [target_linears(layer, f"{model.prefix}.{place}", method) for place in places]
        number += layer.count
        for targets, alike in itertools.groupby(found):
            yield layer, layer.count if len(found) == 1 else len(list(alike)), targets


#: Copies of a token's hidden state that a pass of a layer holds at once: input, normalized, residual, output.
_HIDDEN_COPIES = 4
#: Copies of the logits of one position, in fp32: as computed, scaled, and sorted.
_LOGIT_COPIES = 3


def kv_bytes(model: Architecture, tokens: int, width: int, sliding: int = 0) -> int:
    """Bytes of the keys and values of a conversation.

    Args:
        model: The architecture.
        tokens: Tokens of the conversation, the answer included.
        width: Bytes of an element of the model's arithmetic.
        sliding: Number of layers that keep only the tokens of their sliding window.
    """
    depth, found = max(model.depth, 1), 0
    for layer in model.layers:
        window = layer.attention.window
        short = tokens if window is None else min(tokens, window)
        slides = layer.count * sliding // depth
        found += _of_layer(layer, tokens, width) * (layer.count - slides) + _of_layer(layer, short, width) * slides
    return found


def answer_bytes(
    model: Architecture, *, prompt: int, answer: int, width: int, chunk: int, kept: int = 0, sliding: int = 0
) -> int:
    """Most bytes of an answer beside the model.

    Args:
        model: The architecture.
        prompt: Tokens of the conversation before it.
        answer: Its most tokens.
        width: Bytes of an element of the model's arithmetic.
        chunk: Tokens of the conversation that are read in a pass.
        kept: Tokens of the conversation whose keys and values are cached already.
        sliding: As for :func:`kv_bytes`.
    """
    total, read = prompt + answer, min(chunk, max(prompt - kept, 1))
    # The new keys and values of a layer are made beside the old ones.
    growing = max((_of_layer(layer, total, width) for layer in model.layers), default=0)
    held = kv_bytes(model, total, width, sliding) - kv_bytes(model, kept, width, sliding) + growing
    passing = max((_pass(layer, model.hidden, read, prompt, width) for layer in model.layers), default=0)
    return held + passing + _LOGIT_COPIES * FP32 * model.vocabulary


def _of_layer(layer: Layer, tokens: int, width: int) -> int:
    return 2 * layer.attention.keys * tokens * width


def _pass(layer: Layer, hidden: int, read: int, prompt: int, width: int) -> int:
    """Transient bytes of a layer's pass; the mask and, without a kernel, the scores are of all pairs of tokens."""
    attention = layer.attention
    network = 3 * layer.width if layer.gated else 2 * layer.width
    experts = layer.experts
    if experts is not None:
        network = max(network, 3 * experts.width * experts.active)
    wide = max(2 * attention.queries + 2 * attention.keys, network)
    pairs = read * prompt
    scores = attention.heads * (FP32 + width) * pairs if attention.kernel == "eager" else 0
    return width * read * (_HIDDEN_COPIES * hidden + wide) + pairs * (width + 1) + scores

"""Sizes in bytes of quantized matrices, optimizer states and offloaded inputs; and the layers that get adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from core.config.experts import adapts_experts, adapts_linear
from core.config.schema import MethodSection
from core.memory.steps import FP32
from core.models.architecture.architecture import Layer

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
#: Layers whose experts are on a GPU at once where they live in host memory: that at work, and the next.
EXPERT_LAYERS = 2
#: What stands for the experts of a layer among the targets of its adapters.
EXPERTS = "mlp.experts"
#: Tensors with fewer elements have 32-bit optimizer states; blocks that share a scale in 8-bit states.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256


def quantized_bytes(weights: int) -> int:
    """Bytes of a matrix quantized by bitsandbytes: NF4 with double quantization.

    Args:
        weights: Number of elements.
    """
    blocks = math.ceil(weights / NF4_BLOCK)
    return math.ceil(weights / 2) + blocks + FP32 * math.ceil(blocks / NF4_OUTER_BLOCK) + NF4_TABLES


def quantized_experts_bytes(count: int, weights: int) -> int:
    """Bytes of the stacked matrices of experts, each quantized like a matrix of its own; code books they share.

    Args:
        count: Number of experts.
        weights: Number of elements of all of them together.
    """
    one = weights // count
    # The code books are there once, the offset for each.
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


def target_linears(layer: Layer, prefix: str, method: MethodSection) -> frozenset[str]:
    """Linear layers of a decoder layer that get adapters, and ``mlp.experts`` where its experts do.

    Args:
        layer: The layer.
        prefix: Prefix of its module names: ``model.layers.0``.
        method: Whose targets they are.
    """
    targets = method.target_modules
    found = {linear.name for linear in layer.linears if adapts_linear(f"{prefix}.{linear.name}", targets)}
    if layer.experts is not None and adapts_experts(method, f"{prefix}.{layer.experts.name}", layer.experts.matrices):
        found.add(EXPERTS)
    return frozenset(found)


def split_by_targets(
    layers: Sequence[Layer], prefix: str, method: MethodSection
) -> Iterator[tuple[Layer, frozenset[str]]]:
    """Layers with those of their linear layers that get adapters; a kind of layer is split if a pattern takes only some
    of its layers.

    Args:
        layers: Layers of the model, in order.
        prefix: Module name prefix before a layer's number: ``model.layers``.
        method: Whose targets they are.
    """
    number = 0
    for layer in layers:
        if isinstance(method.target_modules, str):
            yield layer, target_linears(layer, f"{prefix}.{number}", method)
            continue
        run, adapted = 0, frozenset[str]()
        for _ in range(layer.count):
            found = target_linears(layer, f"{prefix}.{number}", method)
            number += 1
            if run and found != adapted:
                yield replace(layer, count=run), adapted
                run = 0
            run, adapted = run + 1, found
        yield replace(layer, count=run), adapted

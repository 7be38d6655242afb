"""How many bytes single things take: a quantized matrix, an optimizer's states; and which tensors are trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from core.config.targets import is_target
from core.memory.steps import FP32
from core.models.architecture.architecture import Layer

#: NF4: half a byte a weight; for each block of 64 weights one byte, and for each 256 of these blocks four (QLoRA,
#: arXiv 2305.14314, with bitsandbytes' block sizes).
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256
#: The code books and the offset of one quantized matrix.
NF4_TABLES = (16 + 256 + 1) * FP32
#: A layer's input of fewer bytes stays on the device, as moving it would win nothing.
OFFLOAD_SMALLEST = 1 << 20
#: Inputs of layers that are on the device at once when they are moved to the machine's memory: that of the layer at
#: work.
OFFLOAD_IN_FLIGHT = 1
#: Tensors of fewer elements keep 32-bit optimizer states; blocks that share a scale in 8-bit states.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256


def quantized_bytes(weights: int) -> int:
    """A matrix as bitsandbytes keeps it: NF4 with double quantization.

    Args:
        weights: Its elements.
    """
    blocks = math.ceil(weights / NF4_BLOCK)
    return math.ceil(weights / 2) + blocks + FP32 * math.ceil(blocks / NF4_OUTER_BLOCK) + NF4_TABLES


def pinned_bytes(layers: int, size: int) -> int:
    """The most that layers' inputs take of the machine's memory.

    Torch gives out pinned memory in powers of two and keeps what it has given out. Micro-batches of fewer tokens have
    smaller blocks of their own, which together are at most as much again.

    Args:
        layers: How many inputs are there at once.
        size: Bytes of one, in the largest micro-batch.
    """
    return 2 * layers * (1 << max(size - 1, 0).bit_length())


def optimizer_bytes(kind: str, elements: int, columns: int = 1) -> int:
    """The states of one trained tensor under ``train.optimizer``.

    Args:
        kind: The optimizer.
        elements: Of the tensor.
        columns: Of it, where it is a matrix; 1 where it is a vector.
    """
    if kind == "adamw":
        return 2 * FP32 * elements + FP32
    if kind == "adafactor":
        # A sum for each row and each column, and the size of the whole.
        return FP32 * (elements // columns + columns + 1 if columns > 1 else elements + 1)
    states = 1 if kind == "lion_8bit" else 2
    if elements < SMALLEST_8BIT:
        return states * FP32 * elements
    return states * (elements + FP32 * math.ceil(elements / BLOCK_8BIT))


def target_linears(layer: Layer, prefix: str, targets: str | Sequence[str]) -> frozenset[str]:
    """Which linear layers of a decoder layer get adapters, as PEFT decides it.

    ``all-linear`` is every one but the output head; what an entry of a list stands for says
    :func:`core.config.targets.is_target`.

    Args:
        layer: The layer.
        prefix: What stands before its name: ``model.layers.0``.
        targets: As ``method.target_modules``.
    """
    found = {
        linear.name
        for linear in layer.linears
        if is_any_target(f"{prefix}.{linear.name}", targets) and (linear.among_all or not isinstance(targets, str))
    }
    if layer.experts is not None and layer.experts.adapted and isinstance(targets, str):
        found.add("mlp.experts")
    return frozenset(found)


def is_any_target(name: str, targets: str | Sequence[str]) -> bool:
    """Whether a linear layer of this full name gets an adapter; see :func:`target_linears`."""
    return isinstance(targets, str) or any(is_target(name, target) for target in targets)


def split_by_targets(
    layers: Sequence[Layer], prefix: str, targets: str | Sequence[str]
) -> Iterator[tuple[Layer, frozenset[str]]]:
    """Layers with those of their linear layers that get adapters; where a pattern takes some layers of a kind and not
    others, the kind is divided.

    Args:
        layers: Of the model, in order.
        prefix: What stands before a layer's number: ``model.layers``.
        targets: As ``method.target_modules``.
    """
    number = 0
    for layer in layers:
        if isinstance(targets, str):
            yield layer, target_linears(layer, f"{prefix}.{number}", targets)
            continue
        run, adapted = 0, frozenset[str]()
        for _ in range(layer.count):
            found = target_linears(layer, f"{prefix}.{number}", targets)
            number += 1
            if run and found != adapted:
                yield replace(layer, count=run), adapted
                run = 0
            run, adapted = run + 1, found
        yield replace(layer, count=run), adapted


def expert_adapters(layer: Layer, rank: int) -> list[tuple[int, int, int]]:
    """Rows, columns and number of the adapters of stacked experts: those of the fused first matrix have twice the
    rank, the router has its own."""
    experts = layer.experts
    if experts is None:
        return []
    hidden, width, count = experts.hidden, experts.width, experts.count
    shapes = [
        (2 * rank * count, hidden),
        (2 * width, 2 * rank * count),
        (rank * count, width),
        (hidden, rank * count),
        (rank, hidden),
        (count, rank),
    ]
    return [(rows, columns, layer.count) for rows, columns in shapes]

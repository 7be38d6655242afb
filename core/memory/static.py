"""Static memory of a run: model weights, trained parameters, gradients and optimizer states."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from core.config.targets import experts_stay_16bit, stays_16bit
from core.memory.host_experts import HostExperts
from core.memory.plan import Part
from core.memory.sizes import quantized_bytes, quantized_experts_bytes
from core.memory.steps import FP32, Adapters, Arithmetic
from core.models.architecture.architecture import Architecture, Layer
from core.units import format_bytes, format_count

#: Notes on the optimizers' states.
STATES = {
    "adamw": "two fp32 moments",
    "adamw_8bit": "two 8-bit moments",
    "paged_adamw_8bit": "two 8-bit moments, paged",
    "adafactor": "fp32 sums of rows and columns",
    "lion_8bit": "one 8-bit moment",
}


class _Matrix(NamedTuple):
    """Matrices of one shape: linear layers, or stacked experts.

    ``kept`` if they stay in 16 bit where the others are quantized; ``experts`` of a linear layer are 0.
    """

    weights: int
    number: int
    experts: int
    kept: bool

    @property
    def quantized(self) -> int:
        """Bytes of one of them in 4 bits."""
        return quantized_experts_bytes(self.experts, self.weights) if self.experts else quantized_bytes(self.weights)

    @property
    def packed(self) -> int:
        """Those of its bytes in 4 bits that are the weights themselves, without their scales."""
        return math.ceil(self.weights / 2)


def _matrices(model: Architecture, keep: Sequence[str]) -> Iterator[_Matrix]:
    """Matrices of linear layers and experts, without those of embeddings and routers."""
    for linear in model.linears:
        yield _Matrix(linear.weights, 1, 0, stays_16bit(linear.name, keep))
    for layer, name, count in _layers(model, keep):
        yield from _of_layer(layer, name, count, keep)


def _layers(model: Architecture, keep: Sequence[str]) -> Iterator[tuple[Layer, str, int]]:
    """Decoder layers with the name of the first of them that are alike, and how many these are."""
    number = 0
    for layer in model.layers:
        # Without patterns all layers of a kind are alike.
        runs = [(number + place, 1) for place in range(layer.count)] if keep else [(number, layer.count)]
        number += layer.count
        for place, count in runs:
            yield layer, f"{model.prefix}.{place}", count


def _of_layer(layer: Layer, name: str, count: int, keep: Sequence[str]) -> Iterator[_Matrix]:
    """Matrices of decoder layers that are alike."""
    for linear in layer.linears:
        yield _Matrix(linear.weights, count, 0, stays_16bit(f"{name}.{linear.name}", keep))
    if (experts := layer.experts) is not None:
        for matrix, weights in zip(experts.names, experts.stacked, strict=True):
            kept = experts_stay_16bit(f"{name}.{experts.name}", matrix, keep)
            yield _Matrix(weights, count, experts.count, kept)


def layer_bytes(model: Architecture, how: Arithmetic, keep: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Bytes of the weights of a decoder layer, those in 4 bits without their scales, and how many layers have as many.

    Args:
        model: Architecture of the model.
        how: Dtypes and quantization.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
    """
    found = []
    for layer, name, count in _layers(model, keep):
        matrices = list(_of_layer(layer, name, 1, keep))
        packed = [each for each in matrices if how.quantized and not each.kept]
        wide = layer.parameters - sum(each.weights for each in packed)
        found.append((how.bytes * wide + sum(each.packed for each in packed), count))
    return found


def scale_bytes(model: Architecture, how: Arithmetic, keep: Sequence[str] = ()) -> dict[str, int]:
    """Bytes of the scales of weights in 4 bits, by the name of their part of the plan.

    Args:
        model: Architecture of the model.
        how: Dtypes and quantization.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
    """
    found: Counter[str] = Counter()
    for matrix in _matrices(model, keep) if how.quantized else ():
        if not matrix.kept:
            part = "experts" if matrix.experts else "linear_weights"
            found[part] += matrix.number * (matrix.quantized - matrix.packed)
    return dict(found)


def weight_parts(
    model: Architecture, how: Arithmetic, copied: int, keep: Sequence[str] = (), on_host: HostExperts | None = None
) -> list[Part]:
    """Memory of the base model's weights.

    Args:
        model: Architecture of the model.
        how: Dtypes and quantization.
        copied: Elements of matrices of which dequantized or merged copies are kept.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
        on_host: The experts, where they live in host memory.
    """
    a = how.bytes
    routers = sum(layer.count * layer.experts.router for layer in model.layers if layer.experts is not None)
    experts = sum(layer.count * sum(layer.experts.stacked) for layer in model.layers if layer.experts is not None)
    bare = model.bare_experts
    rest = model.parameters - model.embeddings - model.linear_weights - experts - bare - routers
    found = []
    if how.quantized:
        sizes: Counter[tuple[bool, bool]] = Counter()
        for matrix in _matrices(model, keep):
            size = a * matrix.weights if matrix.kept else matrix.quantized
            sizes[matrix.experts > 0, matrix.kept] += size * matrix.number
        found.append(Part("linear_weights", sizes[False, False], "linear layers in NF4 with double quantization"))
        found.append(Part("linear_16bit", sizes[False, True], f"linear layers that stay in {8 * a} bit"))
        size, what = sizes[True, False], f"{_active(model)} in NF4 with double quantization"
        if on_host is not None:
            size, what = on_host.device_bytes, f"{what}: of two layers, the others in the machine's memory"
        found.append(Part("experts", size, what))
        found.append(Part("experts_16bit", sizes[True, True] + a * bare, f"experts that stay in {8 * a} bit"))
    else:
        found.append(Part("linear_weights", a * model.linear_weights, f"linear layers in {8 * a} bit"))
        found.append(Part("experts", a * (experts + bare), f"{_active(model) or 'experts'} in {8 * a} bit"))
    if copied:
        found.append(Part("dequantized", a * copied, f"copies of them in {8 * a} bit"))
    found.append(Part("embeddings", a * model.embeddings, f"embeddings and output head in {8 * a} bit"))
    found.append(Part("routers", a * routers, f"routers of the experts in {8 * a} bit"))
    found.append(Part("norms", a * rest + (FP32 - a) * model.wide, f"norms, biases and positions in {8 * a} bit"))
    if not how.cuda and how.quantized and is_mapped(model, how):
        # What stays in 16 bit is a view of the file, and counts above.
        size = a * (model.linear_weights + experts)
        what = "the file's own linear layers and experts" if experts else "the file's own linear layers"
        found.append(Part("weights_file", size, f"{what}, mapped; given back when memory is short"))
    return [part for part in found if part.bytes or part.name in ("linear_weights", "embeddings", "norms")]


def tell_bare_experts(elements: int, width: int) -> str:
    """Sentence on the experts that stay in 16 bit under QLoRA, as transformers does not mark their class.

    Args:
        elements: Number of their elements.
        width: Bytes of an element.
    """
    return (
        f"The experts stay in {8 * width} bit, where they take {format_bytes(width * elements)} instead of "
        f"{format_bytes(quantized_bytes(elements))} in 4 bits: transformers computes those of this family in a way of "
        "their own."
    )


def _active(model: Architecture) -> str:
    """The experts in words, with the number that a token passes through."""
    found = next((layer.experts for layer in model.layers if layer.experts is not None), None)
    return "" if found is None else f"{found.count} experts a layer, {found.active} for each token,"


def is_mapped(model: Architecture, how: Arithmetic) -> bool:
    """Whether tensors stay views of the memory-mapped weight file: they do unless they must be converted."""
    return how.bytes == 2 and (model.checkpoint is None or model.checkpoint.dtype == "BF16")


def copied_weights(model: Architecture, adapters: Sequence[Adapters]) -> int:
    """Elements of the linear layers with plain adapters, those that can be kept dequantized.

    Args:
        model: Architecture of the model.
        adapters: Trained parameters of each kind of layer.
    """
    return sum(
        linear.weights * layer.count
        for layer, trained in zip(model.layers, adapters, strict=True)
        for linear in layer.linears
        if linear.name in trained.targets and not trained.dora and not trained.paired
    )


def own_weight_parts(optimizer: str, trainable: int, states: int, width: int, *, in_backward: bool) -> list[Part]:
    """Memory of gradients and optimizer states in full training, of the model's own weights.

    Args:
        optimizer: As ``train.optimizer``.
        trainable: Number of trained elements.
        states: Bytes of the optimizer's states.
        width: Bytes of an element.
        in_backward: Whether weights are updated inside backward, so that only one layer has gradients at a time.
    """
    size = 0 if in_backward else width * trainable
    return [
        Part("gradients", size, f"of {format_count(trainable)} weights in {8 * width} bit"),
        Part("optimizer", states, f"{optimizer}: {STATES[optimizer]}"),
    ]


def adapter_parts(optimizer: str, trainable: int, states: int, *, paired: bool) -> list[Part]:
    """Memory of adapters with their gradients and optimizer states.

    Args:
        optimizer: As ``train.optimizer``.
        trainable: Elements of the adapters.
        states: Bytes of the optimizer's states.
        paired: Whether each has a frozen reference adapter.
    """
    return [
        Part("adapters", FP32 * trainable, f"{format_count(trainable)} trained parameters in fp32"),
        Part("initial", FP32 * trainable if paired else 0, "what the adapters began with, frozen, in fp32"),
        Part("gradients", FP32 * trainable, "their gradients in fp32"),
        Part("optimizer", states, f"{optimizer}: {STATES[optimizer]}"),
    ]

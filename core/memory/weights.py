"""Static memory of a run: model weights, trained parameters, gradients and optimizer states; experts on the host."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.config.schema import Config
from core.config.targets import experts_stay_16bit, kept_patterns, stays_16bit
from core.memory.calibration import Rates
from core.memory.plan import Part
from core.memory.sizes import (
    EXPERT_LAYERS,
    EXPERTS,
    FP32,
    HOST_SLAB,
    Arithmetic,
    quantized_bytes,
    quantized_experts_bytes,
    split_by_targets,
)
from core.memory.step_time import StepTime
from core.models.architecture.architecture import Architecture, Layer
from core.units import format_bytes, format_count

#: Shapes of trained tensors: rows, columns, and the number of tensors of that shape.
Tensors = list[tuple[int, int, int]]

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
        """Bytes of one matrix in 4 bits."""
        return quantized_experts_bytes(self.experts, self.weights) if self.experts else quantized_bytes(self.weights)

    @property
    def packed(self) -> int:
        """Bytes of the packed weights in 4 bits, without their scales."""
        return math.ceil(self.weights / 2)


def _matrices(model: Architecture, keep: Sequence[str]) -> Iterator[_Matrix]:
    """Matrices of linear layers and experts, without embeddings and routers."""
    for linear in model.linears:
        yield _Matrix(linear.weights, 1, 0, stays_16bit(linear.name, keep))
    for layer, name, count in _layers(model, keep):
        yield from _of_layer(layer, name, count, keep)


def _layers(model: Architecture, keep: Sequence[str]) -> Iterator[tuple[Layer, str, int]]:
    """Groups of equal decoder layers: the layer, the name of the first, and their number."""
    number = 0
    for layer in model.layers:
        # Without patterns all layers of a kind are alike.
        runs = [(number + place, 1) for place in range(layer.count)] if keep else [(number, layer.count)]
        number += layer.count
        for place, count in runs:
            yield layer, f"{model.prefix}.{place}", count


def _of_layer(layer: Layer, name: str, count: int, keep: Sequence[str]) -> Iterator[_Matrix]:
    """Matrices of equal decoder layers."""
    for linear in layer.linears:
        yield _Matrix(linear.weights, count, 0, stays_16bit(f"{name}.{linear.name}", keep))
    if (experts := layer.experts) is not None:
        for matrix, weights in zip(experts.names, experts.stacked, strict=True):
            kept = experts_stay_16bit(f"{name}.{experts.name}", matrix, keep)
            yield _Matrix(weights, count, experts.count, kept)


def layer_bytes(model: Architecture, how: Arithmetic, keep: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Bytes of the weights of decoder layers, 4-bit ones without their scales, and the number of such layers.

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
        # Layers that stay in 16 bit are views of the file, and count above.
        size = a * (model.linear_weights + experts)
        what = "the file's own linear layers and experts" if experts else "the file's own linear layers"
        found.append(Part("weights_file", size, f"{what}, mapped; given back when memory is short"))
    return [part for part in found if part.bytes or part.name in ("linear_weights", "embeddings", "norms")]


def tell_bare_experts(elements: int, width: int) -> str:
    """Sentence on experts that stay in 16 bit under QLoRA, because transformers does not mark their class.

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
    """The experts in words, with the number per token."""
    found = next((layer.experts for layer in model.layers if layer.experts is not None), None)
    return "" if found is None else f"{found.count} experts a layer, {found.active} for each token,"


def is_mapped(model: Architecture, how: Arithmetic) -> bool:
    """True if tensors stay views of the memory-mapped weight file, unless they must be converted."""
    return how.bytes == 2 and (model.checkpoint is None or model.checkpoint.dtype == "BF16")


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


def adapter_tensors(model: Architecture, config: Config) -> Tensors:
    """Shapes of the adapters' tensors.

    Args:
        model: The base model.
        config: Configuration of the run.
    """
    rank, found = config.method.rank, Tensors()
    for layer, count, targets in split_by_targets(model, config.method):
        for linear in layer.linears:
            if linear.name in targets:
                found += [(rank, linear.inputs, count), (linear.outputs, rank, count)]
                if config.method.dora:
                    found.append((linear.outputs, 1, count))
        if layer.experts is not None and EXPERTS in targets:
            for outputs, inputs in layer.experts.matrices:
                found += [(rank * layer.experts.count, inputs, count), (outputs, rank * layer.experts.count, count)]
    return found


def own_tensors(model: Architecture, config: Config) -> Tensors:
    """Shapes of the trained tensors where the model's own weights are trained.

    Args:
        model: The base model.
        config: Configuration of the run, with the method ``full`` or ``freeze``.
    """
    is_whole, found = config.method.name == "full", Tensors()
    wanted, seen, taken = min(config.method.trainable_layers, model.depth), 0, 0
    for layer in model.layers:
        seen += layer.count
        # Layers of several kinds alternate, so that each kind has its share of the trained ones.
        count = layer.count if is_whole else round(wanted * seen / model.depth) - taken
        taken += count
        for linear in layer.linears:
            found += [(linear.outputs, linear.inputs, count), (linear.outputs, 1, count if linear.bias else 0)]
        if layer.experts is not None:
            sizes = (*layer.experts.stacked, layer.experts.router)
            found += [(size // model.hidden, model.hidden, count) for size in sizes]
        found += _small(layer.other, model.hidden, count)
    if is_whole:
        found.append((model.vocabulary, model.hidden, 1 if model.tied else 2))
        found += _small(model.other + (model.vocabulary if model.head_bias else 0), model.hidden, 1)
    return [shape for shape in found if shape[2]]


def _small(elements: int, hidden: int, count: int) -> Tensors:
    """Norms and the like as vectors: as wide as the model, but for a remainder."""
    whole, rest = divmod(elements, hidden)
    return [(size, 1, number) for size, number in ((hidden, whole * count), (rest, count)) if size and number]


@dataclass(frozen=True)
class HostExperts:
    """Experts in host memory.

    Args:
        layers: Bytes of the 4-bit experts of each layer with any, in order.
    """

    layers: tuple[int, ...]

    @property
    def device_bytes(self) -> int:
        """Bytes of the buffers on the GPU: the layer at work, and the next."""
        return max(self.layers, default=0) * min(EXPERT_LAYERS, len(self.layers))

    @property
    def host_bytes(self) -> int:
        """Bytes of pinned host memory, which is taken in slabs."""
        return math.ceil(sum(self.layers) / HOST_SLAB) * HOST_SLAB

    @property
    def moved_bytes(self) -> int:
        """Bytes over the bus for a micro-batch: every layer forward and backward, except the layers in the buffers when
        the direction turns.
        """
        return 2 * sum(sorted(self.layers)[: max(len(self.layers) - EXPERT_LAYERS, 0)])


def experts_on_host(model: Architecture, keep: Sequence[str] = ()) -> HostExperts:
    """The experts of a model that can live in host memory: the 4-bit ones.

    Args:
        model: The model.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
    """
    found = []
    for layer, name, count in _layers(model, keep):
        size = sum(each.quantized for each in _of_layer(layer, name, 1, keep) if each.experts and not each.kept)
        found += [size] * count if size else []
    return HostExperts(tuple(found))


def movable_experts(model: Architecture, config: Config) -> bool:
    """True if a run has 4-bit experts, which can live in host memory.

    Args:
        model: The base model.
        config: Configuration of the run.
    """
    return config.method.name == "qlora" and bool(experts_on_host(model, kept_patterns(config.model.keep_16bit)).layers)


def tell_host_experts(experts: HostExperts, step: StepTime, rates: Rates, short: str) -> str:
    """Cost of experts in host memory, in two sentences.

    Args:
        experts: The experts.
        step: Estimated time of a step with them there.
        rates: Rates of the device.
        short: Clause for host memory that does not suffice.
    """
    copies = f"{format_bytes(experts.moved_bytes)} for each micro-batch, {step.moved_seconds:.1f} s a step"
    return (
        f"The experts take {format_bytes(experts.host_bytes)} of the machine's memory{short}, and come to the card "
        f"layer by layer while it computes. That is {copies} at {rates.host / 1e9:.0f} GB/s ({rates.host_source}); a "
        f"step takes about {step.seconds:.1f} s."
    )

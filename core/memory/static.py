"""Static memory of a run: model weights, trained parameters, gradients and optimizer states."""

from __future__ import annotations

from collections.abc import Sequence

from core.memory.plan import Part
from core.memory.sizes import quantized_bytes
from core.memory.steps import FP32, Adapters, Arithmetic
from core.models.architecture.architecture import Architecture
from core.units import format_count

#: Notes on the optimizers' states.
STATES = {
    "adamw": "two fp32 moments",
    "adamw_8bit": "two 8-bit moments",
    "paged_adamw_8bit": "two 8-bit moments, paged",
    "adafactor": "fp32 sums of rows and columns",
    "lion_8bit": "one 8-bit moment",
}


def weight_parts(model: Architecture, how: Arithmetic, copied: int) -> list[Part]:
    """Memory of the base model's weights.

    Args:
        model: Architecture of the model.
        how: Dtypes and quantization.
        copied: Elements of matrices of which dequantized or merged copies are kept.
    """
    a = how.bytes
    matrices = [(linear.weights, layer.count) for layer in model.layers for linear in layer.linears]
    tower = model.tower.linears if model.tower is not None else ()
    matrices += [(linear.weights, 1) for linear in (*model.linears, *tower)]
    # Experts are stacked into one tensor, which is not a linear layer: bitsandbytes leaves it as it is. On the CPU
    # tensors not converted at load stay views of the memory-mapped file.
    experts = sum(layer.count * layer.experts.weights for layer in model.layers if layer.experts is not None)
    rest = model.parameters - model.embeddings - model.linear_weights - experts
    found = []
    if how.quantized:
        size = sum(quantized_bytes(weights) * count for weights, count in matrices)
        found.append(Part("linear_weights", size, "linear layers in NF4 with double quantization"))
    else:
        found.append(Part("linear_weights", a * model.linear_weights, f"linear layers in {8 * a} bit"))
    if copied:
        found.append(Part("dequantized", a * copied, f"copies of them in {8 * a} bit"))
    found.append(Part("embeddings", a * model.embeddings, f"embeddings and output head in {8 * a} bit"))
    if experts:
        found.append(Part("experts", a * experts, f"experts in {8 * a} bit; stacked tensors are not quantized"))
    found.append(Part("norms", a * rest + (FP32 - a) * model.wide, f"norms, biases and positions in {8 * a} bit"))
    if not how.cuda and how.quantized and is_mapped(model, how):
        size = a * model.linear_weights
        found.append(
            Part("weights_file", size, "the file's own linear layers, mapped; given back when memory is short")
        )
    return found


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


def adapter_parts(optimizer: str, trainable: int, learned: int, states: int, *, paired: bool) -> list[Part]:
    """Memory of adapters with their gradients and optimizer states.

    Args:
        optimizer: As ``train.optimizer``.
        trainable: Elements of the adapters.
        learned: Those of them that get gradients.
        states: Bytes of the optimizer's states.
        paired: Whether each has a frozen reference adapter.
    """
    return [
        Part("adapters", FP32 * trainable, f"{format_count(trainable)} trained parameters in fp32"),
        Part("initial", FP32 * trainable if paired else 0, "what the adapters began with, frozen, in fp32"),
        Part("gradients", FP32 * learned, "their gradients in fp32"),
        Part("optimizer", states, f"{optimizer}: {STATES[optimizer]}"),
    ]

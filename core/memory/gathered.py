"""Gathered sizes: the bytes of a model's layers as cards that share them out bring them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.memory.static import layer_bytes, scale_bytes
from core.memory.steps import Arithmetic
from core.memory.weights import Tensors
from core.models.architecture.architecture import Architecture


@dataclass(frozen=True)
class Gathered:
    """Bytes of a model's parts, whole.

    Args:
        largest: Weights of the largest decoder layer, 4-bit ones as they are packed.
        layers: The same of all decoder layers.
        beside: What is trained beside the weights of a layer.
        depth: Number of decoder layers.
        outside: Embeddings, head, last norm and what else is outside of the layers.
        scales: Scales of 4-bit weights by the name of their part. They belong to no parameter, so that each card has
            them all.
        trained: Number of trained elements.
        width: Bytes of an element of a gradient.
        layer_gradients: Gradients of a decoder layer.
        outside_gradients: Gradients of what is outside of the layers.
    """

    largest: int
    layers: int
    beside: int
    depth: int
    outside: int
    scales: dict[str, int]
    trained: int
    width: int
    layer_gradients: int
    outside_gradients: int

    @property
    def gradients(self) -> int:
        """Gradients of all that is trained."""
        return self.trained * self.width


def gathered_sizes(
    model: Architecture, how: Arithmetic, keep: Sequence[str], trained: Tensors, *, width: int, whole: bool
) -> Gathered:
    """The sizes of a model.

    Args:
        model: The base model.
        how: Dtypes and quantization.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
        trained: Rows, columns and number of the trained tensors.
        width: Bytes of an element of them and of their gradients.
        whole: Whether the model's own weights are trained, which are no tensors beside them.
    """
    elements = sum(rows * columns * count for rows, columns, count in trained)
    matrix = model.vocabulary * model.hidden
    # Of a model that is trained whole, embeddings and head have gradients as well.
    outer = model.embeddings if any(rows * columns == matrix for rows, columns, _ in trained) else 0
    inner = width * (elements - outer) // model.depth
    sizes = layer_bytes(model, how, keep)
    rest = how.bytes * (model.parameters - sum(layer.count * layer.parameters for layer in model.layers))
    return Gathered(
        largest=max(size for size, _ in sizes),
        layers=sum(size * count for size, count in sizes),
        beside=0 if whole else inner,
        depth=model.depth,
        outside=rest,
        scales=scale_bytes(model, how, keep),
        trained=elements,
        width=width,
        layer_gradients=inner,
        outside_gradients=width * outer,
    )

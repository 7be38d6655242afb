"""Full training of the model's own weights: the trained tensors, and the memory of their updates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from core.config.derived import FP32_STATES, updates_in_backward
from core.config.schema import Config
from core.memory.phases import Phase
from core.memory.steps import FP32, Adapters
from core.models.architecture.architecture import Architecture, Layer

#: Tensors as ``(rows, columns, count)``.
Tensors = list[tuple[int, int, int]]

#: Elements of a slice of the update, and bytes per element: the sum in fp32, random bits, and their mask.
SLICE, SLICE_BYTES = 1 << 24, 2 * FP32 + 4

_NOTHING = Adapters(0, 0.0, False, frozenset())
_WEIGHTS = Adapters(0, 0.0, False, frozenset(), weights=True)


def split_layers(model: Architecture, config: Config) -> tuple[Architecture, list[Adapters]]:
    """The model with its layers split into trained and frozen ones, in execution order, and the trained parameters of
    each part.

    If layers of several kinds alternate, each kind is split in proportion.
    """
    if config.method.name == "full":
        return model, [_WEIGHTS] * len(model.layers)
    wanted = min(config.method.trainable_layers, model.depth)
    trained, frozen, taken, seen = [], [], 0, 0
    for layer in model.layers:
        seen += layer.count
        share = round(wanted * seen / model.depth) - taken
        taken += share
        trained.append(replace(layer, count=share))
        frozen.append(replace(layer, count=layer.count - share))
    trained_first = config.method.trainable_end == "first"
    above, below = [(layer, _WEIGHTS) for layer in trained], [(layer, _NOTHING) for layer in frozen]
    ordered = [(layer, what) for layer, what in (above + below if trained_first else below + above) if layer.count]
    return replace(model, layers=tuple(layer for layer, _ in ordered)), [what for _, what in ordered]


def trained_tensors(model: Architecture, trained: list[Adapters], *, whole: bool) -> Tensors:
    """Shapes of the trained tensors.

    Args:
        model: Model with its layers split.
        trained: Trained parameters of each part.
        whole: Whether embeddings, head and other parameters outside the layers are trained too.
    """
    found = list(
        itertools.chain.from_iterable(
            _of_layer(layer, model.hidden) for layer, what in zip(model.layers, trained, strict=True) if what.weights
        )
    )
    if whole:
        found.append((model.vocabulary, model.hidden, 1 if model.tied else 2))
        found += _small(model.other + (model.vocabulary if model.head_bias else 0), model.hidden, 1)
    return found


def _of_layer(layer: Layer, hidden: int) -> Iterator[tuple[int, int, int]]:
    for linear in layer.linears:
        yield linear.outputs, linear.inputs, layer.count
        if linear.bias:
            yield linear.outputs, 1, layer.count
    yield from _small(layer.other, hidden, layer.count)


def _small(elements: int, hidden: int, count: int) -> Tensors:
    """Norms and the like as vectors: as wide as the model, but for a remainder."""
    whole, rest = divmod(elements, hidden)
    return [(size, 1, number) for size, number in ((hidden, whole * count), (rest, count)) if size and number]


def update_bytes(largest: int, width: int, optimizer: str, *, cuda: bool) -> int:
    """Transient memory of the update of the largest tensor: the copy that the optimizer works on, the gradient in its
    dtype if that differs, the optimizer's temporaries, and the slices that are added.

    Args:
        largest: Elements of the largest tensor.
        width: Bytes of an element of the weights.
        optimizer: As ``train.optimizer``.
        cuda: Whether it runs on a GPU, where the optimizers but Adafactor are one kernel.
    """
    fp32 = optimizer in FP32_STATES
    stand_in = (FP32 if fp32 else width) + (FP32 if fp32 and width != FP32 else 0)
    # Adafactor squares the gradient and scales it in copies. On the CPU bitsandbytes dequantizes states to fp32, casts
    # gradient and parameter, and computes the denominator in two steps.
    copies = 2 if optimizer == "adafactor" else 6 if not cuda and not fp32 else 0
    return largest * stand_in + max(largest * copies * FP32, min(largest, SLICE) * SLICE_BYTES)


def with_updates(
    phases: Mapping[str, Phase], model: Architecture, config: Config, tensors: Tensors, width: int, *, cuda: bool
) -> dict[str, Phase]:
    """Phases of a pass with the gradients and updates of weights added, and the phase of the largest update.

    Args:
        phases: Phases ``loss`` and ``backward``, with activations only.
        model: The base model.
        config: The method and the optimizer.
        tensors: Trained tensors.
        width: Bytes of an element of the weights.
        cuda: Whether it runs on a GPU.
    """
    optimizer = config.train.optimizer

    def update(elements: int) -> int:
        return update_bytes(elements, width, optimizer, cuda=cuda)

    largest = max(rows * columns for rows, columns, _ in tensors)
    nothing = Phase(0, 0, 0, 0, 0)
    if not updates_in_backward(config):
        return {**phases, "update": replace(nothing, update=update(largest))}
    head = model.vocabulary * model.hidden if config.method.name == "full" else 0
    inner = max((linear.weights for layer in model.layers for linear in layer.linears), default=0)
    # Each chunk of the loss has a gradient of the head, accumulated over chunks. With tied embeddings it stays until
    # the gradient of the embeddings, which comes last.
    waiting = width * head if model.tied else 0
    kept = 0.0 if model.tied else phases["loss"].kept
    return {
        "loss": replace(phases["loss"], gradients=2 * width * head),
        "backward": replace(phases["backward"], gradients=waiting + width * inner, update=update(inner)),
        "update": replace(nothing, kept=kept if head else 0.0, gradients=width * head, update=update(head)),
    }

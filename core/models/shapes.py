"""Weight shapes against ``config.json``, checked from the headers of the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.architecture.architecture import Architecture
from core.models.architecture.families import read_architecture
from core.models.description import walk
from core.models.quantization_config import read_quantization
from core.models.tables import TABLES
from core.models.tensors import Tensor
from core.models.text_part import as_files_are_tied, is_composite, split_names
from core.text import one_line

#: Name suffixes of input embeddings, in the families that transformers knows.
_EMBEDDINGS = tuple(TABLES["embeddings"])
_HEADS = ("lm_head.weight", "embed_out.weight")
#: Layer number in the name of a tensor or a module, and the name within the layer.
LAYER_NAME = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,9})\.(.+)")
_EXPERT = re.compile(r"(.+\.experts)\.(\d{1,9})\.(.+)")
#: Numbers of layers up to this are accepted whatever the weights have, as they cost little.
_FEW_LAYERS = 256
#: Keys of the number of layers in configurations.
_DEPTHS = frozenset(TABLES["depths"])
_HINT = "Take config.json and weights from the same model."


def embedding_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the input embedding, the size of the model's vocabulary; None if not found."""
    found = _embedding(tensors)
    return found[1].shape[0] if found is not None else None


def check_shapes(config: dict[str, Any], tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Check that the weights have the layers and shapes that ``config.json`` describes.

    Families that :mod:`core.models.architecture.families` does not know are checked as far as possible: the rest shows
    when the model is loaded.

    Args:
        config: The content of ``config.json``.
        tensors: As the headers describe them, decoded where they can be.
        directory: Name of the model in messages.

    Raises:
        UserError: At the first difference.
    """
    if not tensors:
        raise UserError(f"{directory} has weights without a single tensor.", "Copy or fetch them again.")
    config = dict(as_files_are_tied(config, tensors))
    for place, key, value in walk(config):
        # A layer has at least one tensor. Excess layers would be built one by one until memory runs out.
        if key in _DEPTHS and type(value) is int and value > max(len(tensors), _FEW_LAYERS):
            raise UserError(
                f"{directory}: the weights have {len(tensors):,} tensors in all, and config.json says that "
                f"{one_line(place, 60)} is {one_line(str(value), 20)}.",
                _HINT,
            )
    _check_experts(tensors, directory)
    architecture = _known_architecture(config, directory)
    if architecture is None:
        return
    tensors = of_text_part(config, tensors)
    if (found := _embedding(tensors)) is not None:
        _compare(found[0], found[1], (architecture.vocabulary, architecture.hidden), directory)
    layers = by_layer(tensors)
    if layers and len(layers) != architecture.depth:
        raise UserError(
            f"{directory}: the weights have {len(layers)} layers and config.json says {architecture.depth}.", _HINT
        )
    _check_linears(architecture, layers, directory)
    if not architecture.tied and found is not None and not any(name.endswith(_HEADS) for name in tensors):
        raise UserError(
            f"{directory} has no output head in its weights, so it cannot write ({', '.join(_HEADS)}).",
            "Use the version with the language model head, not the one for embeddings.",
        )


def shapes_are_known(config: dict[str, Any], directory: Path) -> bool:
    """True if :func:`check_shapes` compares all large weights; other errors show when the model is loaded."""
    return _known_architecture(config, directory) is not None


def _known_architecture(config: dict[str, Any], directory: Path) -> Architecture | None:
    quantization = read_quantization(directory, config)
    if quantization is not None and not quantization.is_decoded:
        return None  # packed weights have other shapes
    try:
        return read_architecture(config, str(directory / "config.json"))
    except UserError:
        return None  # unsupported families are not an error here


def of_text_part(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a language model by the names in its own class; for a composite model, its text part."""
    if not is_composite(config):
        return tensors
    return {own: tensors[name] for name, own in split_names(tensors).text.items()}


def _check_experts(tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Check that experts are numbered without gaps: they are stacked in order, whatever their numbers."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for name in tensors:
        if (match := _EXPERT.fullmatch(name)) is not None:
            numbers.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (before, after), found in numbers.items():
        missing = next((number for number in range(len(found)) if number not in found), None)
        if missing is not None:
            raise UserError(
                f"{directory} lacks {one_line(f'{before}.{missing}.{after}', 120)} in its weights.",
                "Copy or fetch them again.",
            )


def _check_linears(architecture: Architecture, layers: Mapping[int, Mapping[str, Tensor]], directory: Path) -> None:
    shapes = {linear.name: (linear.outputs, linear.inputs) for kind in architecture.layers for linear in kind.linears}
    alike = len(architecture.layers) == 1
    named = {name for layer in layers.values() for name in layer}
    for number, layer in sorted(layers.items()):
        for name, shape in shapes.items():
            tensor = layer.get(f"{name}.weight")
            if tensor is not None:
                # GPT-2 stores its matrices transposed.
                if tensor.shape != shape[::-1]:
                    _compare(f"layer {number}, {name}.weight", tensor, shape, directory)
            elif alike and f"{name}.weight" in named:
                raise UserError(
                    f"{directory} lacks the weights of layer {number}, {name}.", "Copy or fetch them again."
                )


def _compare(name: str, tensor: Tensor, expected: tuple[int, ...], directory: Path) -> None:
    if tensor.shape != expected:
        raise UserError(
            f"{directory}: the weights do not match config.json: {one_line(name, 120)} is {tensor}, and should be "
            f"{' x '.join(map(str, expected))}.",
            _HINT,
        )


def _embedding(tensors: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    for name, tensor in tensors.items():
        if name.endswith(_EMBEDDINGS) and len(tensor.shape) == 2 and "vision" not in name and "per_layer" not in name:
            return name, tensor
    return None


def by_layer(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Tensors by layer, and by their name within it."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := LAYER_NAME.search(name)) is not None:
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    return layers

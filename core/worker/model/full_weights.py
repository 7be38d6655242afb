"""Training of the model's own weights: their selection, and their return from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.config.schema import MethodSection
from core.errors import UserError
from core.worker.model.completeness import tell
from core.worker.model.model import decoder_layers
from core.worker.model.safetensors_io import read_tensors, tensor_names


def choose_weights(model: Any, method: MethodSection, *, seed: int) -> Any:
    """Make the model's own weights trainable: all of them, or those of its first or last decoder layers.

    Args:
        model: The base model, frozen.
        method: ``name`` full or freeze, ``trainable_layers`` and ``trainable_end``.
        seed: Seed of later draws: dropout and rounding.

    Returns:
        The same model, in training mode.

    Raises:
        UserError: If the model has fewer layers.
    """
    if method.name == "full":
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    else:
        layers, wanted = decoder_layers(model), method.trainable_layers
        if wanted > len(layers):
            raise UserError(
                f"method.trainable_layers is {wanted}, and the model has {len(layers)} layers.",
                "Name fewer, or set method.name = full.",
            )
        for layer in layers[-wanted:] if method.trainable_end == "last" else layers[:wanted]:
            layer.requires_grad_(True)
    torch.manual_seed(seed)
    model.train()
    return model


def put_weights(model: Any, path: Path, method: str) -> None:
    """Load a checkpoint's trained weights over a base model.

    Args:
        model: The base model.
        path: A safetensors file.
        method: Training method: ``full`` has all weights, ``freeze`` those of whole layers.

    Raises:
        UserError: If they do not fit, or some are missing.
    """
    own = dict(model.named_parameters())
    names = tensor_names(path)
    wanted = {name for name, parameter in own.items() if parameter.is_floating_point()}
    if method != "full":
        numbers = {
            id(parameter): number
            for number, layer in enumerate(decoder_layers(model))
            for parameter in layer.parameters()
        }
        trained = {numbers.get(id(own[name])) for name in names if name in own}
        wanted = {name for name in wanted if numbers.get(id(own[name])) in trained - {None}}
    if missing := wanted - set(names):
        raise UserError(f"{path} lacks weights that were trained: {tell(missing)}.", "Use an earlier checkpoint.")
    read_tensors(path, {name: own[name] for name in names if name in own})


def trained_tensors(model: Any) -> dict[str, torch.nn.Parameter]:
    """Weights that the optimizer updates, by name; tied weights once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

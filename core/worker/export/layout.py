"""Mapping of a model's parameters to its weight files, where their names may differ from the program's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from core.errors import UserError
from core.models.description import split_names
from core.models.tensors import Tensor
from core.text import one_line
from core.worker.model.decode.checkpoint import Checkpoint
from core.worker.model.quantizer import FourBitQuantizer, four_bit_config
from core.worker.model.text_part import causal_lm


@dataclass(frozen=True)
class ExpertPart:
    """A tensor in the files that is a part of a layer's experts, which the program has in one parameter.

    Args:
        parameter: The parameter of the program: ``model.layers.0.mlp.experts.gate_up_proj``.
        number: The expert.
        parts: The tensors that its matrix is stacked from: gate and up.
        place: Index of this one among them.
    """

    parameter: str
    number: int
    parts: tuple[str, ...]
    place: int


@dataclass(frozen=True)
class Layout:
    """The weight files of a model."""

    directory: Path
    model: Any
    """The model of ``transformers``, on the device ``meta``; of a composite model the text part."""
    checkpoint: Checkpoint
    """Its files, decoded where they are quantized."""
    keys: dict[str, str]
    """Parameter to its name in the files; parameters stored unchanged, one to one."""
    tied: dict[str, str]
    """Tied parameter to its other one: the head to the embeddings."""
    expert_parts: dict[str, ExpertPart]
    """Tensors of the files that are parts of experts, by their names."""
    others: frozenset[str] = frozenset()
    """Names in the files outside the text part of a composite model; these tensors stay as they are."""

    @property
    def files(self) -> dict[Path, dict[str, Tensor]]:
        """The tensors of each file, once decoded."""
        return self.checkpoint.files

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of all files by their names."""
        return {key: tensor for tensors in self.files.values() for key, tensor in tensors.items()}

    def module(self, name: str) -> Any:
        """A module of the model by its name.

        Raises:
            UserError: If there is none.
        """
        try:
            return self.model.get_submodule(name)
        except AttributeError as error:
            raise UserError(
                f"The base model {self.directory} has no layer {one_line(name, 120)}, which was trained.",
                "Put back the base that the run was trained on.",
            ) from error


def read_layout(base: Path) -> Layout:
    """Read the layout of a model's weight files.

    Raises:
        UserError: If its files cannot be read.
    """
    found = causal_lm(base)
    model = found.build()
    checkpoint = Checkpoint(base)
    parameters = model.state_dict()
    transforms = get_model_conversion_mapping(model, found.key_mapping)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    keys: dict[str, str] = {}
    merged: dict[str, dict[str, list[str]]] = {}
    for key in checkpoint:
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, parameters)
        if name in parameters and converted is None:
            keys[name] = key
        elif name in parameters:
            merged.setdefault(name, {}).setdefault(converted, []).append(key)
    return Layout(
        directory=base,
        model=model,
        checkpoint=checkpoint,
        keys=keys,
        tied=dict(getattr(model, "all_tied_weights_keys", None) or {}),
        expert_parts=_expert_parts(merged, converters),
        others=frozenset(() if found.whole is None else split_names(checkpoint).others),
    )


def _expert_parts(merged: dict[str, dict[str, list[str]]], converters: list[Any]) -> dict[str, ExpertPart]:
    """The parts of experts among the tensors that make up a parameter: stacked by expert by transformers, with the
    parts of each expert concatenated.

    Args:
        merged: Parameter to the patterns of its parts, each with the matching tensors.
        converters: transformers' converters.
    """
    found: dict[str, ExpertPart] = {}
    for parameter, by_pattern in merged.items():
        converter = next(entry for entry in converters if set(by_pattern) <= set(entry.source_patterns))
        stacking, *joining = converter.operations
        if not isinstance(stacking, MergeModulelist) or stacking.dim != 0 or len(joining) > 1:
            continue
        if any(not isinstance(operation, Concatenate) or operation.dim != 1 for operation in joining):
            continue
        # In the order of the patterns, and of the numbers in the names.
        columns = [sorted(by_pattern.get(pattern, ()), key=dot_natural_key) for pattern in converter.source_patterns]
        for number, parts in enumerate(zip(*columns, strict=False)):
            for place, key in enumerate(parts):
                found[key] = ExpertPart(parameter, number, tuple(parts), place)
    return found


def rounded_layers(layout: Layout, keep: Sequence[str] = ()) -> set[str]:
    """The parameters that QLoRA loads in 4 bits: linear layers except head and routers, and the experts of mixtures.

    Args:
        layout: The layout of a base.
        keep: Names and patterns of layers that stay in 16 bits, as ``model.keep_16bit``.
    """
    quantizer = FourBitQuantizer(four_bit_config(torch.bfloat16, keep), pre_quantized=False)
    model = read_layout(layout.directory).model
    before = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    quantizer.preprocess_model(model=model, dtype=torch.bfloat16, device_map=None)
    linear = {f"{name}.weight" for name in before if type(model.get_submodule(name)) is not torch.nn.Linear}
    return linear | set(quantizer.expert_shapes)

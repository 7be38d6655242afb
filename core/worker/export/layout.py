"""Parameters of a model in its weight files: the name that each has there, which need not be that in the program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.quantizers.auto import AutoHfQuantizer

from core.errors import UserError
from core.models.tensors import Tensor
from core.text import one_line
from core.worker.model.decode.checkpoint import Checkpoint


@dataclass(frozen=True)
class Layout:
    """The weight files of a model."""

    directory: Path
    model: Any
    """The model of ``transformers``, on the device ``meta``."""
    checkpoint: Checkpoint
    """Its files, decoded where they are quantized."""
    keys: dict[str, str]
    """Parameter to its name in the files; those that the files hold as they are, one to one."""
    tied: dict[str, str]
    """Parameter to the other one that it is: the head to the embeddings."""

    @property
    def files(self) -> dict[Path, dict[str, Tensor]]:
        """The tensors of each file, once decoded."""
        return self.checkpoint.files

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of all files, by their names there."""
        return {key: tensor for tensors in self.files.values() for key, tensor in tensors.items()}

    def module(self, name: str) -> Any:
        """A module of the model by its name.

        Raises:
            UserError: If it has none of this name.
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
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    checkpoint = Checkpoint(base)
    parameters = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    keys = {}
    for key in checkpoint:
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, parameters)
        if converted is None and name in parameters:
            keys[name] = key
    return Layout(base, model, checkpoint, keys, dict(getattr(model, "all_tied_weights_keys", None) or {}))


def rounded_layers(layout: Layout) -> set[str]:
    """The parameters that QLoRA loads in 4 bit: those of the linear layers that ``transformers`` replaces, which are
    all but the head."""
    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_4bit=True), pre_quantized=False)
    model = read_layout(layout.directory).model
    before = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    quantizer.preprocess_model(model=model, dtype=torch.bfloat16, device_map=None)
    return {f"{name}.weight" for name in before if type(model.get_submodule(name)) is not torch.nn.Linear}

"""Support by the installed transformers: a base must load as a causal language model, asked before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from core.errors import UserError
from core.models.check import check_model_config
from core.models.quantized import check_quantization, read_decoded
from core.models.shapes import shapes_are_known
from core.text import one_line
from core.worker.model.completeness import check_size


def check_base(base: Path) -> None:
    """See that a base is of an architecture that is known and as large as its files, and that its weights can be read.

    Args:
        base: A directory that :func:`core.models.check.check_model_directory` has let pass.

    Raises:
        UserError: If not.
    """
    config = check_model_config(base)
    family = str(config["model_type"])
    if family not in CONFIG_MAPPING_NAMES:
        import transformers

        raise UserError(
            f"{base} is of the architecture {one_line(family, 60)}, which transformers {transformers.__version__} does "
            "not know.",
            "Upgrade transformers if the model is newer than it, or choose another model.",
        )
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{base} is a {one_line(family, 60)}, not a causal language model.",
            "Choose a causal language model: one whose config.json names an architecture that ends with ForCausalLM.",
        )
    check_quantization(base, config)
    if not shapes_are_known(config, base):
        _check_size(base, config)


def _check_size(base: Path, config: dict[str, Any]) -> None:
    """See that an architecture whose shapes are not compared beforehand is not larger than its files.

    Raises:
        UserError: If it is, or transformers cannot make sense of its configuration.
    """
    try:
        known = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    except Exception as error:  # whatever the code of that architecture makes of numbers that make no sense
        first = one_line(str(error).strip().partition("\n")[0], 200).rstrip(".") or type(error).__name__
        raise UserError(
            f"The model in {base} cannot be loaded: {first}.", "Check its config.json, or choose another model."
        ) from error
    check_size(model, base, read_decoded(base, config).elements)

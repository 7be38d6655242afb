"""Whether the installed transformers can load a base as a causal language model, asked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from core.errors import UserError
from core.models.architectures import check_quantization
from core.models.check import check_model_config
from core.text import one_line


def check_base(base: Path, method: str) -> None:
    """See that a base is of an architecture that is known, and that the method can take its weights.

    Args:
        base: A directory that :func:`core.models.check.check_model_directory` has let pass.
        method: ``qlora`` or ``lora``.

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
    check_quantization(config, base, method)

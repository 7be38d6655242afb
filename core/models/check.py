"""Model directory checks: whether a model can be loaded without running foreign code; no heavy imports.

Nothing is loaded for it: descriptions are JSON, and so are the headers of safetensors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.adapters import CONFIG as ADAPTER_CONFIG
from core.models.adapters import not_a_model, wanted_base
from core.models.architectures import check_architecture
from core.models.description import read_description, unreadable
from core.models.files import TOKENIZERS
from core.models.foreign import refuse_foreign
from core.models.installed import check_known
from core.models.quantized_weights import read_decoded
from core.models.shapes import check_shapes, embedding_rows, of_text_part
from core.models.tokens import check_tokens


def check_model_directory(directory: Path) -> Path:
    """Check that a directory holds a complete causal language model in the transformers format.

    Returns:
        The directory.

    Raises:
        UserError: If configuration, tokenizer or weights are missing, damaged or do not belong together, if the weights
            are pickles, if the model brings code of its own, or is of another kind or newer than transformers.
    """
    config = check_model_config(directory)
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{directory} has no tokenizer.", "Copy the tokenizer's files from where the model is from.")
    tensors = read_decoded(directory, config).tensors
    check_shapes(config, tensors, directory)
    check_tokens(config, embedding_rows(of_text_part(config, tensors)), directory)
    check_known(config, directory)
    return directory


def check_model_config(directory: Path) -> dict[str, Any]:
    """Check that a directory describes a causal language model that needs no code but transformers'.

    Returns:
        The content of its ``config.json``.

    Raises:
        UserError: If not.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise unreadable(directory, error) from error
    if not names:
        raise UserError(f"{directory} is empty.", "Copy or fetch the model into it.")
    config = read_description(directory / "config.json")
    adapter = read_description(directory / ADAPTER_CONFIG)
    if config is None:
        if adapter is not None:
            raise not_a_model(directory, adapter)
        raise UserError(
            f"{directory} has no config.json, so it is not a model.",
            "Give a directory with config.json, a tokenizer and safetensors weights, or a GGUF file.",
        )
    if adapter is not None:
        # transformers would load the base that it names instead of the weights in the directory.
        base = wanted_base(adapter)
        raise UserError(
            f"{directory} holds a model and an adapter{f' for {base}' if base else ''} at once.",
            f"Move {ADAPTER_CONFIG} out of it, or give the model that the adapter was trained on.",
        )
    refuse_foreign(config, directory / "config.json")
    for name in ("tokenizer_config.json", "generation_config.json"):
        refuse_foreign(read_description(directory / name) or {}, directory / name)
    check_architecture(config, directory)
    return config

"""Support by the installed transformers: a base must load as a causal language model, asked before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from core.errors import UserError
from core.models.check import check_model_config
from core.models.installed import unknown_architecture
from core.models.quantization_config import check_quantization
from core.models.quantized_weights import read_decoded
from core.models.shapes import shapes_are_known
from core.models.text_part import split_names, text_model_type
from core.worker.model.completeness import check_size
from core.worker.model.refusal import first_line, why_not
from core.worker.model.text_part import CausalLM, causal_lm


def check_base(base: Path) -> None:
    """See that a base is of an architecture that is known and as large as its files, and that its weights can be read.

    Args:
        base: A directory that :func:`core.models.check.check_model_directory` has let pass.

    Raises:
        UserError: If not.
    """
    config = check_model_config(base)
    for family in (str(config["model_type"]), text_model_type(config)):
        if family is not None and family not in CONFIG_MAPPING_NAMES:
            raise unknown_architecture(config, base, family)
    try:
        found = causal_lm(base)
    except UserError:
        raise
    except Exception as error:  # whatever the code of that architecture makes of numbers that make no sense
        raise _unreadable(base, error) from error
    check_quantization(base, config)
    if not shapes_are_known(config, base):
        _check_size(base, config, found)


def _unreadable(base: Path, error: Exception) -> UserError:
    return UserError(f"The model in {base} cannot be loaded: {first_line(error)}.", why_not(error, base))


def _check_size(base: Path, config: dict[str, Any], found: CausalLM) -> None:
    """See that an architecture whose shapes are not compared beforehand is not larger than its files.

    Raises:
        UserError: If it is, or transformers cannot make sense of its configuration.
    """
    try:
        model = found.build()
    except Exception as error:  # as above
        raise _unreadable(base, error) from error
    tensors = read_decoded(base, config).tensors
    if found.whole is not None:
        tensors = {name: tensors[name] for name in split_names(tensors).text}
    check_size(model, base, sum(tensor.elements for tensor in tensors.values()))

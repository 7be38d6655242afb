"""Configurations of a model's directory: ``config.json`` and ``generation_config.json``, as transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from core.errors import UserError
from core.worker.model.refusal import first_line, why_not
from core.worker.model.text_part import causal_lm


def load_config(base: Path) -> Any:
    """The ``config`` of a model; of a composite one that of its text part.

    Raises:
        UserError: If it cannot be read, or is not that of a model which writes text.
    """
    try:
        return causal_lm(base).config
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The model in {base} cannot be loaded: {first_line(error)}.", why_not(error, base)) from error


def load_generation_config(base: Path) -> Any:
    """The ``generation_config`` that a model has, or would have.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return GenerationConfig.from_pretrained(base, local_files_only=True)
    except OSError:
        return GenerationConfig.from_model_config(load_config(base))
    except (ValueError, TypeError) as error:
        path = base / "generation_config.json"
        raise UserError(f"{path} cannot be read: {first_line(error)}.", "Copy it again.") from error


def vocabulary_size(base: Path) -> int:
    """Rows of a model's embeddings, by its ``config``.

    Raises:
        UserError: As :func:`load_config`.
    """
    return int(load_config(base).get_text_config().vocab_size)

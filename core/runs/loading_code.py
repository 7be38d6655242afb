"""Loading code: Python code that loads the result of a run outside the app."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import UserError
from core.models.adapters import CONFIG
from core.models.description import read_description
from core.models.text_part import auto_class


def python_code(result: Path, *, is_model: bool) -> str:
    """Python code that loads a result with PEFT and Transformers.

    Args:
        result: Directory of the adapter or the model.
        is_model: Whether it is a whole model.
    """
    loader = _loader(result if is_model else Path(_base_of(result)))
    if is_model:
        return "\n".join(
            [
                f"from transformers import {loader}, AutoTokenizer",
                f"model = {_quoted(result)}",
                "tokenizer = AutoTokenizer.from_pretrained(model)",
                f"model = {loader}.from_pretrained(model)",
            ]
        )
    # Adapters of checkpoints have no tokenizer beside them; it is that of the base.
    has_tokenizer = os.path.isfile(result / "tokenizer_config.json")
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {loader}, AutoTokenizer",
            f"base = {_quoted(_base_of(result))}",
            f"adapter = {_quoted(result)}",
            f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if has_tokenizer else 'base'})",
            f"model = {loader}.from_pretrained(base)",
            "model = PeftModel.from_pretrained(model, adapter)",
        ]
    )


def _loader(model: Path) -> str:
    """The class of transformers by which a model is loaded with all its parts."""
    try:
        return auto_class(read_description(model / "config.json") or {})
    except (UserError, ValueError):  # a path may have a zero byte
        return auto_class({})


def _base_of(adapter: Path) -> str:
    """The base model that an adapter was trained on, as its configuration names it."""
    try:
        name = (read_description(adapter / CONFIG) or {}).get("base_model_name_or_path")
    except (UserError, ValueError):  # a path may have a zero byte
        name = None
    return name if isinstance(name, str) and name else "the base model"


def _quoted(path: Path | str) -> str:
    """A path as a Python string; a repr is one whatever the path has in it."""
    text = os.fspath(path)
    return f'"{text}"' if text.isprintable() and '"' not in text and "\\" not in text else ascii(text)

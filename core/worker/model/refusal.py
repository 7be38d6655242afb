"""Refusals of libraries: what one says of a model that it does not load, as a sentence, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from core.errors import UserError
from core.models.description import read_description
from core.models.installed import newer_version, transformers_version
from core.text import one_line


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without a period at its end; its kind where it has none."""
    return one_line(str(error).strip().partition("\n")[0], 300).rstrip(".") or type(error).__name__


def why_not(error: BaseException, base: Path) -> str:
    """What to do about a model that a library fails to load, as a hint.

    Args:
        error: What it raised.
        base: The model's directory.
    """
    if isinstance(error, ImportError):
        return "Install what it names, or choose another model."
    try:
        config = read_description(base / "config.json") or {}
    except UserError as unreadable:
        return unreadable.message
    if (newer := newer_version(config)) is not None:
        return (
            f"It was saved with transformers {newer}, and {transformers_version()} is installed: "
            f"pip install --upgrade 'transformers>={newer}'."
        )
    if isinstance(error, (OSError, SafetensorError, EOFError)):
        return "Copy or fetch the model's files again."
    return "Take config.json, tokenizer and weights from the same version of the model, or choose another one."

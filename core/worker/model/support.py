"""Support by the installed transformers: checks that a base is a causal language model before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GenerationConfig

from core.directories import Progress
from core.errors import UserError
from core.models.check import check_model_config, shapes_are_known
from core.models.description import check_quantization, read_description, split_names
from core.models.installed import check_known, newer_version, transformers_version
from core.models.tensors import read_decoded
from core.worker.model.completeness import check_size, first_line
from core.worker.model.starter import resolve_base
from core.worker.model.text_part import CausalLM, causal_lm


def why_not(error: BaseException, base: Path) -> str:
    """A hint for a model that a library fails to load.

    Args:
        error: The library's error.
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


def load_config(base: Path) -> Any:
    """The ``config`` of a model; of a composite one its text part's.

    Raises:
        UserError: If it cannot be read, or is not that of a model that writes text.
    """
    try:
        return causal_lm(base).config
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(base, error) from error


def load_generation_config(base: Path) -> Any:
    """The ``generation_config`` of a model, or its default.

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
    """Rows of a model's embeddings by its ``config``.

    Raises:
        UserError: As :func:`load_config`.
    """
    return int(load_config(base).get_text_config().vocab_size)


def ready_base(name: str, progress: Progress) -> Path:
    """The directory of a base model that can be loaded, prepared if necessary.

    Args:
        name: As ``model.base``.
        progress: As for :func:`core.worker.model.starter.resolve_base`.

    Raises:
        UserError: As that function and :func:`check_base`.
    """
    base = resolve_base(name, progress)
    check_base(base)
    return base


def check_base(base: Path) -> None:
    """Check that a base has a known architecture, is as large as its files, and that its weights can be read.

    Args:
        base: A directory that has passed :func:`core.models.check.check_model_directory`.

    Raises:
        UserError: If not.
    """
    config = check_model_config(base)
    check_known(config, base)
    try:
        found = causal_lm(base)
    except UserError:
        raise
    except Exception as error:  # any error of an architecture's code on senseless numbers
        raise _unreadable(base, error) from error
    check_quantization(base, config)
    if not shapes_are_known(config, base):
        _check_size(base, config, found)


def _unreadable(base: Path, error: Exception) -> UserError:
    return UserError(f"The model in {base} cannot be loaded: {first_line(error)}.", why_not(error, base))


def _check_size(base: Path, config: dict[str, Any], found: CausalLM) -> None:
    """Check that an architecture whose shapes are not compared beforehand is not larger than its files.

    Raises:
        UserError: If it is, or if transformers cannot use its configuration.
    """
    try:
        model = found.build()
    except Exception as error:  # as above
        raise _unreadable(base, error) from error
    tensors = read_decoded(base, config).tensors
    if found.whole is not None:
        tensors = {name: tensors[name] for name in split_names(tensors).text}
    check_size(model, base, sum(tensor.elements for tensor in tensors.values()))

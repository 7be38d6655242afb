"""The base model of a run: made ready, and checked to be a causal language model that transformers loads."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GenerationConfig

from core.config.schema import Config
from core.directories import Progress
from core.errors import UserError
from core.models.check import CheckedModel, check_model_directory
from core.models.description import check_quantization, read_description, split_names
from core.models.find import STARTER_NAME, find_model, missing_model, model_path
from core.models.installed import newer_version, transformers_version
from core.template.settings import mask_settings
from core.worker.data.dataset import Loader
from core.worker.data.encode import Encoder, stop_token_ids
from core.worker.model.completeness import check_size, first_line
from core.worker.model.gguf import convert_once
from core.worker.model.starter import prepare_starter
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


def row_loader(
    config: Config,
    base: Path,
    tokenizer: Any,
    template: str | None,
    progress: Progress,
    *,
    now: datetime | None = None,
) -> Loader:
    """A reader of a run's rows, with its template, masks and stop tokens, for the time after the run.

    Args:
        config: Its configuration.
        base: Directory of the model.
        tokenizer: Its tokenizer.
        template: A Jinja chat template instead of the tokenizer's own.
        progress: Called with the number of rows read; may raise to cancel.
        now: Date for templates that insert one; None for today.

    Raises:
        UserError: If the model's files cannot be read.
    """
    stops = stop_token_ids(load_generation_config(base), tokenizer, template)
    encoder = Encoder(tokenizer, stops, template, settings=mask_settings(config, str(base)), now=now)
    return Loader(
        config,
        encoder,
        vocabulary=vocabulary_size(base),
        progress=lambda read: progress("reading the rows", read, None),
    )


def resolve_base(name: str, progress: Progress) -> Path:
    """The directory of a base model that can be loaded, prepared if necessary.

    Args:
        name: As for :func:`core.models.find.find_model`; a GGUF file is converted once, and the starter model prepared.
            Only the starter model uses the network.
        progress: As for :func:`core.worker.model.starter.prepare_starter`.

    Raises:
        UserError: If there is no such model, it is incomplete, contains code or has its weights as pickles, or
            transformers cannot build it.
    """
    path = model_path(name)
    # os.path instead of Path, whose methods raise where a parent directory may not be entered.
    if name == STARTER_NAME and not os.path.exists(path):
        base = prepare_starter(progress)
    elif (found := find_model(name)) is not None:
        base = found
    elif os.path.isfile(path):
        base = convert_once(path, progress)
    else:
        raise missing_model(name)
    model = check_model_directory(base)
    try:
        causal = causal_lm(base)
    except UserError:
        raise
    except Exception as error:  # any error of an architecture's code on senseless numbers
        raise _unreadable(base, error) from error
    check_quantization(base, model.config)
    if not model.is_compared:
        _check_size(base, model, causal)
    return base


def _unreadable(base: Path, error: Exception) -> UserError:
    return UserError(f"The model in {base} cannot be loaded: {first_line(error)}.", why_not(error, base))


def _check_size(base: Path, checked: CheckedModel, causal: CausalLM) -> None:
    """Check that an architecture whose shapes are not compared beforehand is not larger than its files.

    Raises:
        UserError: If it is, or if transformers cannot use its configuration.
    """
    try:
        model = causal.build()
    except Exception as error:  # as above
        raise _unreadable(base, error) from error
    names = checked.tensors if causal.whole is None else split_names(checked.tensors).text
    check_size(model, base, sum(checked.tensors[name].elements for name in names))

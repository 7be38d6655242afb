"""Directories for transformers and PEFT: merged weights or an adapter, beside tokenizer, chat template, configurations
and license.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.directories import Progress
from core.errors import UserError
from core.export.card import describe_base
from core.export.request import MergeFrom, Quant
from core.models.description import TOKENIZERS, read_description, read_quantization
from core.runs.catalog.trained import TrainedModel
from core.template.builtin import named_or_file
from core.worker.data.encode import stop_token_ids
from core.worker.export.gguf.write import without_training_tags
from core.worker.export.merge import merge_weights
from core.worker.model.model import load_tokenizer
from core.worker.model.support import load_generation_config

TEMPLATE = "chat_template.jinja"
#: Files of the tokenizer and of its template, copied byte for byte.
_TOKENIZER_FILES = (
    *TOKENIZERS,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *(TEMPLATE, "chat_template.json"),
)
#: A base's templates for some conversations, such as with tools, which take precedence over the usual one.
_FURTHER_TEMPLATES = "additional_chat_templates"
_LICENSES = ("LICENSE", "NOTICE", "USE_POLICY")
#: The types of weights as ``config.json`` names them.
_DTYPE_NAMES: dict[Quant, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Conversation:
    """Chat template and stop tokens of a model."""

    template: str | None
    """The chat template of the training, without training tags; None where the model has none."""
    is_own: bool
    """True if it is the base's own, as in its files."""
    stop_ids: tuple[int, ...]
    """The stop tokens."""
    stops: tuple[str, ...]
    """Their texts."""
    bos: str
    """The token that begins a text; empty without one."""
    eos: str
    """The token that ends a text; empty without one."""


def read_conversation(base: Path, trained: TrainedModel) -> Conversation:
    """Template and stop tokens of a run's model.

    Args:
        base: The directory with its tokenizer.
        trained: The trained model.

    Raises:
        UserError: If tokenizer or template cannot be read.
    """
    tokenizer = load_tokenizer(base)
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else _default(tokenizer.chat_template)
    chosen = named_or_file(trained.template)
    template = own if chosen is None else chosen
    ids = stop_token_ids(load_generation_config(base), tokenizer, chosen)
    return Conversation(
        template=None if template is None else without_training_tags(template),
        is_own=template == own,
        stop_ids=tuple(ids),
        stops=tuple(str(tokenizer.convert_ids_to_tokens(number)) for number in ids),
        bos=str(tokenizer.bos_token or ""),
        eos=str(tokenizer.eos_token or ""),
    )


def _default(templates: Any) -> str | None:
    """The template for conversations without tools, if a model has several."""
    found = templates.get("default") if isinstance(templates, dict) else None
    return found if isinstance(found, str) else None


def copy_tokenizer(base: Path, directory: Path, conversation: Conversation) -> None:
    """Copy the tokenizer's files and the license of a model, byte for byte, and write the chat template of the training
    beside them, which is then the only one.

    Raises:
        OSError: If they cannot be written.
    """
    for name in _TOKENIZER_FILES:
        if (path := base / name).is_file():
            shutil.copyfile(path, directory / name)
    for path in sorted(base.iterdir()):
        if path.name.upper().startswith(_LICENSES) and path.is_file():
            shutil.copyfile(path, directory / path.name)
    if conversation.template is None or conversation.is_own:
        if (path := base / _FURTHER_TEMPLATES).is_dir():
            shutil.copytree(path, directory / _FURTHER_TEMPLATES, copy_function=shutil.copyfile)
    else:
        (directory / TEMPLATE).write_text(conversation.template, encoding="utf-8")


def write_configs(base: Path, directory: Path, quant: Quant, conversation: Conversation, *, untied: bool) -> None:
    """Write ``config.json`` and ``generation_config.json`` of a merged model: the base's, with the new dtype and stop
    tokens.

    Args:
        base: The directory of the base.
        directory: Directory of the merged model.
        quant: The type of its weights.
        conversation: Its template and stop tokens.
        untied: Head and embeddings are two tensors, unlike in the base.

    Raises:
        OSError: If they cannot be written.
    """
    config = read_description(base / "config.json") or {}
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            _adjust(part, quant, untied=untied, is_whole=part is config)
    _write(directory / "config.json", config)
    generation = read_description(base / "generation_config.json") or {}
    ids = list(conversation.stop_ids)
    if ids:
        generation["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    _write(directory / "generation_config.json", generation)


def _adjust(part: dict[str, Any], quant: Quant, *, untied: bool, is_whole: bool) -> None:
    part.pop("quantization_config", None)
    names = [name for name in ("dtype", "torch_dtype") if name in part]
    for name in names or (["dtype"] if is_whole else []):
        part[name] = _DTYPE_NAMES[quant]
    if untied and (is_whole or "tie_word_embeddings" in part):
        part["tie_word_embeddings"] = False


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(base: Path, trained: TrainedModel, directory: Path, conversation: Conversation) -> None:
    """Write an adapter into a directory: its weights byte for byte, its configuration with the base's hub name.

    Args:
        base: The directory of the base.
        trained: The trained model, with an adapter.
        directory: The target directory.
        conversation: Template and stop tokens.

    Raises:
        UserError: If its configuration cannot be read.
        OSError: If it cannot be written.
    """
    if trained.adapter is None:
        raise ValueError(f"{trained.label} has no adapter")
    config = read_description(trained.adapter / _CONFIG)
    if config is None:
        raise UserError(f"{trained.adapter} has no {_CONFIG}.", "Export another step.")
    # On another machine only the hub name leads to the base; a local base is named by its path.
    config["base_model_name_or_path"] = describe_base(trained.base, base).hub_id or str(base)
    shutil.copyfile(trained.adapter / _WEIGHTS, directory / _WEIGHTS)
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
    (directory / _CONFIG).write_text(text + "\n", encoding="utf-8")
    copy_tokenizer(base, directory, conversation)


Way = Literal["base", "quantized"]


def write_merged(
    base: Path,
    trained: TrainedModel,
    directory: Path,
    quant: Quant,
    way: Way,
    conversation: Conversation,
    progress: Progress,
) -> None:
    """Write a merged model.

    Args:
        base: The directory of the base, or of the result if all weights are in it.
        trained: The trained model.
        directory: An empty directory.
        quant: The type of the weights.
        way: The weights that an adapter is merged into, see :func:`way_to_merge`.
        conversation: Template and stop tokens.
        progress: Called with each stage.

    Raises:
        UserError: If it cannot be merged.
        OSError: If it cannot be written.
    """
    untied = merge_weights(base, trained, directory, quant, rounded=way == "quantized", progress=progress)
    copy_tokenizer(base, directory, conversation)
    write_configs(base, directory, quant, conversation, untied=untied)


def way_to_merge(base: Path, trained: TrainedModel, way: MergeFrom) -> Way:
    """The weights to merge an adapter into.

    By default those of the training: the sum is then the trained model but for the type of the file, while a merge into
    weights that were not rounded to 4 bit differs from it by that rounding.
    """
    method = trained.config.method.name
    if trained.adapter is None:
        return "base"
    quantization = read_quantization(base)
    if quantization is not None and quantization.is_used_as_saved(method):
        return "quantized"  # the files have no others
    # For a file, the training merged already.
    if way == "auto" or trained.file is not None:
        return "quantized" if method == "qlora" else "base"
    return way

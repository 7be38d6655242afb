"""Staging: the directory that is converted, made of links to a model's files and of what had to be mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.export.gguf.options import GgufOptions
from core.models.description import TOKENIZER_LIMIT, read_description
from core.models.files import WEIGHTS_INDEX
from core.models.tensors import weight_files

#: Files that are taken as they are. A chat template is not among them: the export sets it.
_LINKED = ("generation_config.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json")
#: Model types whose experts are chosen by a sigmoid, which the converter reads from ``scoring_func``. transformers does
#: not ask for that key; without it llama.cpp takes a softmax, or ends.
_SIGMOID = ("deepseek_v3", "dots1", "exaone_moe", "glm4_moe_lite")
#: Forms of a tokenizer that are taken where there is no ``tokenizer.json``.
_OTHER_FORMS = ("vocab.json", "merges.txt", "tekken.json")
_SENTENCEPIECE = "tokenizer.model"
#: Token types of ``tokenizer.json`` that the converter reads from ``tokenizer_config.json``.
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


def stage(model: Path, options: GgufOptions, directory: Path) -> None:
    """Fill a directory with what the converter takes of a model.

    A ``tokenizer.model`` that transformers has not saved comes from the base; the types of added tokens, which it
    keeps in ``tokenizer.json`` alone, are written where the converter looks for them. So is how experts are scored,
    where the model's class alone knows it.

    Args:
        model: The model's directory.
        options: What the file is to be.
        directory: An empty directory.

    Raises:
        UserError: If a file of the model is damaged.
        OSError: If the directory cannot be written.
    """
    for path in weight_files(model):
        _link(path, directory)
    if not (model / "model.safetensors").is_file():
        _link(model / WEIGHTS_INDEX, directory)
    for name in _LINKED:
        _link(model / name, directory)
    config = read_description(model / "config.json") or {}
    if config.get("model_type") in _SIGMOID and "scoring_func" not in config:
        (directory / "config.json").write_text(json.dumps({**config, "scoring_func": "sigmoid"}), encoding="utf-8")
    else:
        _link(model / "config.json", directory)
    if not (model / "tokenizer.json").is_file():
        for name in _OTHER_FORMS:
            _link(model / name, directory)
    sources = [model, *([options.base] if options.base is not None else [])]
    found = next((place / _SENTENCEPIECE for place in sources if (place / _SENTENCEPIECE).is_file()), None)
    if found is not None:
        _link(found, directory)
    settings = _tokenizer_settings(model)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def own_templates(model: Path) -> tuple[str | None, str | None]:
    """A model's own chat template, and its separate one for conversations with tools.

    Raises:
        UserError: If a file is damaged.
    """
    settings = read_description(model / "tokenizer_config.json") or {}
    value = settings.get("chat_template")
    named: dict[str, Any] = {"default": value}
    if isinstance(value, list):
        named = {str(item.get("name")): item.get("template") for item in value if isinstance(item, dict)}
    elif isinstance(value, dict):
        named = value
    files = {
        "default": model / "chat_template.jinja",
        "tool_use": model / "additional_chat_templates" / "tool_use.jinja",
    }
    named |= {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    default, tools = named.get("default"), named.get("tool_use")
    return (default if isinstance(default, str) else None, tools if isinstance(tools, str) else None)


def _link(path: Path, directory: Path) -> None:
    if path.is_file():
        (directory / path.name).symlink_to(path.absolute())


def _tokenizer_settings(model: Path) -> dict[str, Any]:
    settings = read_description(model / "tokenizer_config.json") or {}
    settings.pop("chat_template", None)
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if not settings.get("added_tokens_decoder"):
        content = read_description(model / "tokenizer.json", TOKENIZER_LIMIT) or {}
        added = content.get("added_tokens")
        settings["added_tokens_decoder"] = {
            str(token["id"]): {"content": token["content"], **{name: bool(token.get(name)) for name in _FLAGS}}
            for token in (added if isinstance(added, list) else [])
            if isinstance(token, dict) and type(token.get("id")) is int and isinstance(token.get("content"), str)
        }
    return settings

"""Model directory checks: whether a model can be loaded without running foreign code; no heavy imports.

Nothing is loaded for it: descriptions are JSON, and so are the headers of safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.adapters import CONFIG as ADAPTER_CONFIG
from core.models.adapters import not_a_model, wanted_base
from core.models.description import TOKENIZER_LIMIT, TOKENIZERS, read_description, refuse_foreign, text_part, unreadable
from core.models.installed import check_known
from core.models.quantized_weights import read_decoded
from core.models.shapes import check_shapes, embedding_rows, of_text_part
from core.models.tables import TABLES
from core.text import one_line

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_HINT = "Take the tokenizer that belongs to the model."


def check_tokens(config: dict[str, Any], rows: int | None, directory: Path) -> None:
    """Check that no token in use is outside the embedding.

    Unused added tokens may be outside: some models are published that way (the image token of a model without its
    vision part). Tokens of the data are checked with the data.

    Args:
        config: The content of ``config.json``.
        rows: Rows of the input embedding; None for the configuration's.
        directory: Directory of the model.

    Raises:
        UserError: If a token is outside, or a file of the tokenizer is damaged.
    """
    rows = rows or text_part(config).get("vocab_size")
    settings = read_description(directory / "tokenizer_config.json") or {}
    specials = read_description(directory / "special_tokens_map.json") or {}
    generation = read_description(directory / "generation_config.json") or {}
    backend = read_description(directory / "tokenizer.json", TOKENIZER_LIMIT)
    if not isinstance(rows, int) or rows < 1:
        return
    for source, values in (
        ("config.json", config),
        ("config.json", text_part(config)),
        ("generation_config.json", generation),
    ):
        for name, token in _special_ids(values):
            # -1 has long been written for "none".
            if token >= rows or token < -1:
                raise UserError(
                    f"{directory / source}: {name} is {token}, and the model knows the tokens 0 to {rows - 1}.",
                    "Copy the model's own file, or put the right number there.",
                )
    if backend is not None:
        _check_backend(backend, _used(settings, specials, directory), rows, directory)


def _special_ids(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(name)
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and not isinstance(token, bool):
                yield name, token


def _check_backend(backend: Mapping[str, Any], used: Mapping[str, str], rows: int, directory: Path) -> None:
    path = directory / "tokenizer.json"
    model = backend.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        highest = max((token for token in vocabulary.values() if type(token) is int), default=-1)
    elif isinstance(vocabulary, list):
        highest = len(vocabulary) - 1
    else:
        raise UserError(f"{path} is damaged: it has no vocabulary.", "Copy it again from where the model is from.")
    added = backend.get("added_tokens")
    numbers = {
        token["content"]: token["id"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
    }
    # A vocabulary may repeat the added tokens at its end, so they are separated before it is checked.
    if isinstance(vocabulary, dict) and highest >= rows:
        highest = max((i for text, i in vocabulary.items() if type(i) is int and text not in numbers), default=-1)
    if highest >= rows:
        raise UserError(f"{path} has tokens up to {highest}, and the model knows those below {rows}.", _HINT)
    for text, number in numbers.items():
        if number >= rows and (place := _place(text, used)) is not None:
            raise UserError(
                f"{path}: {one_line(text, 60)}, {place}, is token {number}, and the model knows those below {rows}.",
                f"{_HINT[:-1]}; tokens cannot be added to a model here.",
            )


def _used(settings: Mapping[str, Any], specials: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Tokens in use: role to token, and the chat template under an empty name."""
    used = {}
    for source in (specials, settings):
        for role in _ROLES:
            value = source.get(role)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                used[role] = text
    template = settings.get("chat_template")
    if (file := directory / "chat_template.jinja").is_file() and file.stat().st_size < 1 << 20:
        template = file.read_text(encoding="utf-8", errors="replace")
    used[""] = template if isinstance(template, str) else str(template or "")
    return used


def _place(text: str, used: Mapping[str, str]) -> str | None:
    role = next((role for role, token in used.items() if role and token == text), None)
    if role is not None:
        return f"the {role}"
    return "which the chat template writes" if text and text in used[""] else None


_OTHERS = {family: what for what, families in TABLES["others"].items() for family in families}
_CHOOSE = "Choose a causal language model: one whose config.json names an architecture that ends with ForCausalLM."


def check_architecture(config: Mapping[str, Any], directory: Path) -> None:
    """Check that a ``config.json`` describes a causal language model, as far as it says.

    Args:
        config: Its content.
        directory: Name of the model in messages.

    Raises:
        UserError: If not.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise UserError(
            f"{directory / 'config.json'} has no model_type, so its architecture is not known.",
            "Copy the model's own config.json; those of other formats (Mistral's params.json, GGML) do not do.",
        )
    named = config.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    shown = f"{directory} is {{}} ({one_line(names[0] if names else family, 60)}), not a causal language model{{}}."
    if config.get("is_encoder_decoder") is True or (family in TABLES["encoder_decoders"] and not writes):
        raise UserError(shown.format("an encoder-decoder", ""), _CHOOSE)
    if family in _OTHERS:
        raise UserError(shown.format(_OTHERS[family], ""), _CHOOSE)
    if family in TABLES["encoders"] and not (writes and config.get("is_decoder") is True):
        raise UserError(shown.format("an encoder", ""), _CHOOSE)
    does = next((does for name in names for end, does in TABLES["heads"].items() if name.endswith(end)), None)
    # GPT-2's class for pretraining generates text.
    if does is not None and not writes and not (family.startswith("gpt") and names[0].endswith("ForPreTraining")):
        raise UserError(shown.format(f"a {one_line(family, 40)} with another head", f": {does}"), _CHOOSE)


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

"""Tokenizer and embedding consistency: token ids must be within the embedding, as far as the files show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.description import TOKENIZER_LIMIT, read_description, text_part
from core.text import one_line

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_HINT = "Take the tokenizer that belongs to the model."


def check_tokens(config: dict[str, Any], rows: int | None, directory: Path) -> None:
    """Check that no token in use is outside the embedding.

    Unused added tokens may be: models are published so (the image token of a model without its vision part). Tokens of
    the data are checked with the data.

    Args:
        config: The content of ``config.json``.
        rows: Rows of the input embedding; None for the configuration's.
        directory: Directory of the model.

    Raises:
        UserError: If one is, or a file of the tokenizer is damaged.
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

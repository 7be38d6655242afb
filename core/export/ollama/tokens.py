"""Tokens that Ollama puts around a prompt by itself, from the metadata of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError
from core.models.architecture.gguf_header import read_gguf_header
from core.text import one_line

#: Tokenizers for which llama.cpp adds the token whatever the metadata say.
_FORCED = ("gemma4", "lfm2")
_AGAIN = "Export the GGUF file again."


def adds_bos(gguf: Path) -> bool:
    """Whether the reader of a GGUF file puts the token at the beginning of a sequence before every prompt.

    Raises:
        UserError: If the file cannot be read, does not say, or has an end-of-text token added to prompts as well.
    """
    metadata = read_gguf_header(gguf).metadata
    if metadata.get("tokenizer.ggml.add_eos_token") is True:
        raise UserError(f"{one_line(str(gguf))} has the end of text added to every prompt, which ends it.", _AGAIN)
    if metadata.get("tokenizer.ggml.pre") in _FORCED or metadata.get("tokenizer.ggml.model") == "gemma4":
        return True
    found = metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(found, bool):
        return found
    if metadata.get("tokenizer.ggml.model") == "llama":
        # All readers agree on this one.
        return True
    raise UserError(
        f"{one_line(str(gguf))} does not say whether a token is put before every prompt (add_bos_token), and readers "
        "differ in what they take it for.",
        _AGAIN,
    )

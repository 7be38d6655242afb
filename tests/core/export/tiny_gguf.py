"""A GGUF file of a tiny Llama, written with the ``gguf`` package alone: a right export, and wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.llama_gguf import add_architecture, add_tokens, finish, tensor_name, tensor_values
from tests.tiny_model import CHATML


def write_tiny_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    template: str | None = CHATML,
    kind: str = "F32",
    splitting: str = "gpt-2",
    add_bos: bool = False,
    change_token: Callable[[int, str], str] = lambda _, text: text,
    change_weight: Callable[[str, Any], Any] = lambda _, weight: weight,
) -> Path:
    """Write a Llama of transformers as llama.cpp reads it.

    Args:
        path: The file.
        model: A ``LlamaForCausalLM``.
        tokenizer: Its tokenizer, byte-level BPE.
        template: The chat template of the metadata; None for none.
        kind: ``F32``, ``F16`` or ``Q8_0``.
        splitting: llama.cpp's name of the way in which its tokenizer splits text.
        add_bos: Whether the file asks for a begin-of-text token before every text.
        change_token: Given the number and text of each token, the text to write.
        change_weight: Given the name and values of each tensor, the values to write.
    """
    import gguf
    import numpy as np

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    tensor_type = gguf.GGMLQuantizationType[kind]
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    add_architecture(writer, config)
    add_tokens(writer, tokenizer, config.vocab_size, splitting, change_token)
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = tensor_name(name)
        values = np.ascontiguousarray(change_weight(theirs, tensor_values(name, tensor, config)))
        own = tensor_type if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(theirs, gguf.quants.quantize(values, own), raw_dtype=own)
    finish(writer)
    return path

"""Parts of a GGUF file of a Llama model, written with the ``gguf`` package alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any


def add_architecture(writer: Any, config: Any) -> None:
    """Add the sizes of the model to the metadata, as llama.cpp names them.

    Args:
        writer: A ``GGUFWriter``.
        config: A ``LlamaConfig``.
    """
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)


def add_tokens(
    writer: Any,
    tokenizer: Any,
    size: int,
    splitting: str,
    change_token: Callable[[int, str], str] = lambda _, text: text,
) -> None:
    """Add a byte-level BPE tokenizer: texts and kinds of its tokens, merges, and the tokens that begin and end a text.

    Args:
        writer: A ``GGUFWriter``.
        tokenizer: The tokenizer.
        size: The number of tokens.
        splitting: llama.cpp's name of the way in which it splits text.
        change_token: Given the number and text of each token, what is written in its place.
    """
    import gguf

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = [gguf.TokenType.NORMAL] * size
    for added in described["added_tokens"]:
        if added["id"] < size:
            kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list([change_token(number, tokenizer.convert_ids_to_tokens(number)) for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def tensor_name(name: str) -> str:
    """The name of a tensor in the file.

    Args:
        name: Its name in transformers.

    Raises:
        KeyError: If a Llama has none of that name.
    """
    return f"{_names()[name.removesuffix('.weight')]}.weight"


@functools.cache
def _names() -> Any:
    import gguf

    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 99)


def tensor_values(name: str, tensor: Any, config: Any) -> Any:
    """The values of a tensor in the file, in fp32.

    llama.cpp rotates neighboring rows of a head, transformers those that are half a head apart.

    Args:
        name: Its name in transformers.
        tensor: Its values there.
        config: The ``LlamaConfig``.
    """
    import numpy as np

    values = tensor.detach().float().numpy()
    if ".q_proj." in name or ".k_proj." in name:
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        shape = values.shape
        values = values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    return np.ascontiguousarray(values)


def finish(writer: Any) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

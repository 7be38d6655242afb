"""A GGUF file of a tiny Llama, written with the ``gguf`` package alone: what a right export is, and wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        change_token: Given the number and text of each token, what is written in its place.
        change_weight: Given the name and values of each tensor, what is written in its place.
    """
    import gguf

    file_type, tensor_type = {
        "F32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
        "F16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
        "Q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
    }[kind]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_file_type(file_type)
    _add_architecture(writer, model.config)
    _add_tokens(writer, tokenizer, model.config.vocab_size, splitting, change_token)
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)
    _add_weights(writer, model, tensor_type, change_weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_architecture(writer: Any, config: Any) -> None:
    """The sizes of the model, as llama.cpp names them."""
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


def _add_tokens(
    writer: Any, tokenizer: Any, count: int, splitting: str, change_token: Callable[[int, str], str]
) -> None:
    """The tokenizer: texts and kinds of its tokens, merges, and the tokens that begin and end a text."""
    import json

    import gguf

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = [gguf.TokenType.NORMAL] * count
    for added in described["added_tokens"]:
        if added["id"] < count:
            kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list([change_token(number, tokenizer.convert_ids_to_tokens(number)) for number in range(count)])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _add_weights(writer: Any, model: Any, matrix_type: Any, change_weight: Callable[[str, Any], Any]) -> None:
    """The tensors under llama.cpp's names: matrices in their type, vectors in F32."""
    import gguf
    import numpy as np

    config = model.config
    for name, tensor in model.state_dict().items():
        theirs = _name(name)
        if theirs is None or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        values = tensor.detach().float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            # llama.cpp rotates neighboring rows of a head, transformers those that are half a head apart.
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            shape = values.shape
            values = values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        values = np.ascontiguousarray(change_weight(theirs, values))
        own = matrix_type if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(theirs, gguf.quants.quantize(values, own), raw_dtype=own)


_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _name(name: str) -> str | None:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    parts = name.removesuffix(".weight").split(".")
    ours = _NAMES.get(".".join(parts[3:]))
    return None if ours is None else f"blk.{parts[2]}.{ours}.weight"

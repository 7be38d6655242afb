"""GGUF files made from small Llama models on the spot."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from core import paths
from tests.families.tiny import write_family
from tests.llama_gguf import add_architecture, add_tokens, finish, tensor_name, tensor_values


def write_gguf(
    model_dir: Path, path: Path, *, without: tuple[str, ...] = (), extra: dict[str, Any] | None = None, **sizes: int
) -> Path:
    """Write a Llama model with a byte-level BPE tokenizer as a GGUF of 32-bit floats.

    Args:
        model_dir: The model.
        path: The file.
        without: Tensors that are left out, by their names there.
        extra: Arrays that are put in besides, or in place of others.
        sizes: Wrong sizes for the metadata, by the names of the configuration.
    """
    import gguf

    model, tokenizer = _loaded(model_dir)
    config = copy.deepcopy(model.config)
    for name, size in sizes.items():
        setattr(config, name, size)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    add_architecture(writer, config)
    _add_tokenizer(writer, tokenizer)
    tensors = {
        tensor_name(name): tensor_values(name, tensor, model.config)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied
    }
    for name, tensor in (tensors | (extra or {})).items():
        if name not in without:
            writer.add_tensor(name, tensor)
    finish(writer)
    return path


def converted() -> list[str]:
    """The models directory without locks."""
    found = paths.models_dir().iterdir() if paths.models_dir().is_dir() else ()
    return sorted(path.name for path in found if not path.name.endswith(".lock"))


@functools.lru_cache(maxsize=1)
def _loaded(model_dir: Path) -> tuple[Any, Any]:
    """A model and its tokenizer, which are only read."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(model_dir).float(), AutoTokenizer.from_pretrained(model_dir)


def write_lfm2_gguf(_model_dir: Path, path: Path) -> Path:
    """Write a random LFM2 model, a convolution and an attention layer, as a GGUF of 32-bit floats."""
    import gguf

    # A file has as many embeddings as its tokenizer has tokens.
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "vocab_size": 312}
    model, tokenizer = _loaded(write_family("lfm2", path.with_name("lfm2"), block_auto_adjust_ff_dim=False, **sizes))
    config = model.config
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(2)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv([0, config.num_key_value_heads])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_shortconv_l_cache(config.conv_L_cache)
    _add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LFM2, 2)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            values = tensor.squeeze(1) if "conv.conv" in name else tensor
            writer.add_tensor(names.get_name(name, (".weight",)), values.numpy())
    finish(writer)
    return path


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    add_tokens(writer, tokenizer, len(tokenizer), "smollm")
    writer.add_pad_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)

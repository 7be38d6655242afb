"""Tiny models by family: configurations of the real classes with all features of a family, few layers deep.

Widths are multiples of 64, so that bitsandbytes quantizes them in whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tiny_model import CHATML, train_byte_level

#: Rows of the tokenizer and of the embeddings.
VOCABULARY = 320
_CORPUS = ["the ticket area urgency normal high low ref null user assistant system"] * 4


@dataclass(frozen=True)
class Family:
    """A family: its configuration and its features.

    Args:
        config: Makes the configuration that its ``config.json`` has; of a model that also sees, the whole one.
        models: Models that people tune, of this family.
        sees: Whether it has a tower besides its text part.
        experts: Whether it has experts.
        hybrid: Whether some layers carry a state from token to token instead of attending.
    """

    config: Callable[[], Any]
    models: str
    sees: bool = False
    experts: bool = False
    hybrid: bool = False


#: Fields of most configurations.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _make(name: str, **more: Any) -> Callable[[], Any]:
    def config() -> Any:
        import transformers

        return getattr(transformers, name)(**SHAPE | more)

    return config


def _sees(name: str, text: Callable[[], Any], vision: dict[str, Any], **more: Any) -> Callable[[], Any]:
    def config() -> Any:
        import transformers

        return getattr(transformers, name)(text_config=text().to_dict(), vision_config=vision, **more)

    return config


_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "patch_size": 4,
    "deepstack_visual_indexes": [],
}
_SIGLIP = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_PIXTRAL = {**_SIGLIP, "head_dim": 32, "model_type": "pixtral"}
_GEMMA4_VISION = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "patch_size": 4,
    "position_embedding_size": 16,
}
_GEMMA4: dict[str, Any] = {
    "head_dim": 32,
    "global_head_dim": 64,
    "sliding_window": 32,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": VOCABULARY,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(_make("LlamaConfig"), "Llama 3"),
    "qwen3": Family(_make("Qwen3Config", head_dim=32, tie_word_embeddings=True), "Qwen3 0.6B to 32B"),
    "qwen3_moe": Family(
        _make(
            "Qwen3MoeConfig",
            head_dim=32,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            norm_topk_prob=True,
        ),
        "Qwen3-30B-A3B",
        experts=True,
    ),
    "qwen3_5": Family(
        _sees("Qwen3_5Config", _make("Qwen3_5TextConfig", **_DELTA), _QWEN_VISION),
        "Qwen3.5 and 3.6, dense",
        sees=True,
        hybrid=True,
    ),
    "qwen3_5_moe": Family(
        _sees(
            "Qwen3_5MoeConfig",
            _make(
                "Qwen3_5MoeTextConfig",
                **_DELTA,
                num_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=64,
                shared_expert_intermediate_size=64,
            ),
            _QWEN_VISION,
        ),
        "Qwen3.5 and 3.6, 35B-A3B",
        sees=True,
        experts=True,
        hybrid=True,
    ),
    "gemma3": Family(
        _sees(
            "Gemma3Config", _make("Gemma3TextConfig", head_dim=32, sliding_window=32), _SIGLIP, mm_tokens_per_image=4
        ),
        "Gemma 3 4B to 27B",
        sees=True,
    ),
    "gemma4": Family(
        _sees(
            "Gemma4Config",
            _make("Gemma4TextConfig", **_GEMMA4, hidden_size_per_layer_input=64, num_kv_shared_layers=2),
            _GEMMA4_VISION,
        ),
        "Gemma 4 E2B, E4B, 12B, 31B",
        sees=True,
    ),
    "gemma4_moe": Family(
        _sees(
            "Gemma4Config",
            _make(
                "Gemma4TextConfig",
                **_GEMMA4,
                hidden_size_per_layer_input=0,
                num_kv_shared_layers=0,
                enable_moe_block=True,
                num_experts=8,
                top_k_experts=2,
                moe_intermediate_size=64,
            ),
            _GEMMA4_VISION,
        ),
        "Gemma 4 26B-A4B",
        sees=True,
        experts=True,
    ),
    "gpt_oss": Family(
        _make("GptOssConfig", head_dim=32, num_local_experts=8, num_experts_per_tok=2, sliding_window=32),
        "gpt-oss-20b",
        experts=True,
    ),
    "mistral3": Family(
        _sees("Mistral3Config", _make("MistralConfig", head_dim=32), _PIXTRAL, tie_word_embeddings=False),
        "Mistral Small 3.x",
        sees=True,
    ),
    "ministral3": Family(
        _sees("Mistral3Config", _make("Ministral3Config", head_dim=32), _PIXTRAL),
        "Ministral 3 3B to 14B",
        sees=True,
    ),
    "glm4_moe_lite": Family(
        _make(
            "Glm4MoeLiteConfig",
            num_key_value_heads=4,
            n_routed_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            n_shared_experts=1,
            q_lora_rank=64,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=32,
            v_head_dim=32,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
        ),
        "GLM-4.7-Flash",
        experts=True,
    ),
    "phi3": Family(_make("Phi3Config"), "Phi 4 and Phi 4 mini"),
    "smollm3": Family(_make("SmolLM3Config", num_hidden_layers=4), "SmolLM3"),
    "lfm2": Family(
        _make("Lfm2Config", num_hidden_layers=3, layer_types=["conv", "conv", "full_attention"]),
        "LFM2 350M to 2.6B",
        hybrid=True,
    ),
    "lfm2_moe": Family(
        _make(
            "Lfm2MoeConfig",
            num_hidden_layers=3,
            layer_types=["conv", "conv", "full_attention"],
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            num_dense_layers=1,
        ),
        "LFM2 8B-A1B",
        experts=True,
        hybrid=True,
    ),
    "olmo3": Family(_make("Olmo3Config", num_key_value_heads=4, num_hidden_layers=4, sliding_window=32), "OLMo 3"),
    "granite": Family(_make("GraniteConfig"), "Granite 3"),
    "granitemoehybrid": Family(
        _make(
            "GraniteMoeHybridConfig",
            num_hidden_layers=3,
            layer_types=["mamba", "mamba", "attention"],
            mamba_n_heads=4,
            mamba_d_head=32,
            mamba_d_state=16,
            mamba_n_groups=1,
            mamba_expand=2,
            mamba_chunk_size=16,
            num_local_experts=8,
            num_experts_per_tok=2,
            shared_intermediate_size=64,
        ),
        "Granite 4 H Tiny and Small",
        experts=True,
        hybrid=True,
    ),
    "granitemoehybrid_dense": Family(
        _make(
            "GraniteMoeHybridConfig",
            num_hidden_layers=2,
            layer_types=["attention", "attention"],
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=128,
        ),
        "Granite 4 Micro",
    ),
}


def write_family(name: str, directory: Path, *, dtype: str = "bfloat16", seed: int = 0) -> Path:
    """A random model of a family, as :func:`write_model` makes it.

    Args:
        name: A key of :data:`FAMILIES`.
        directory: Where it goes.
        dtype: Of its weights.
        seed: Of its weights.
    """
    family = FAMILIES[name]
    return write_model(family.config(), directory, sees=family.sees, dtype=dtype, seed=seed)


def write_model(config: Any, directory: Path, *, sees: bool = False, dtype: str = "bfloat16", seed: int = 0) -> Path:
    """A random model with a byte-level tokenizer and ChatML, saved as published ones are.

    Args:
        config: Its configuration.
        directory: Where it goes.
        sees: Whether it has a tower besides its text part.
        dtype: Of its weights.
        seed: Of its weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

    backend = train_byte_level(_CORPUS, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], VOCABULARY)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(seed)
    loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = loader.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory

"""Tiny models whose experts are computed differently than in most families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _made(name: str, **values: Any) -> Callable[[], Any]:
    def config() -> Any:
        import transformers

        return getattr(transformers, name)(vocab_size=320, pad_token_id=0, bos_token_id=1, eos_token_id=2, **values)

    return config


LLAMA_4 = _made(
    "Llama4TextConfig",
    hidden_size=64,
    intermediate_size=64,
    intermediate_size_mlp=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    num_local_experts=4,
    interleave_moe_layer_step=2,
    max_position_embeddings=2048,
)
DBRX = _made(
    "DbrxConfig",
    d_model=64,
    n_heads=4,
    n_layers=2,
    max_seq_len=512,
    ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}},
    attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
)
JETMOE = _made(
    "JetMoeConfig",
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_key_value_heads=2,
    kv_channels=32,
    num_local_experts=4,
    num_experts_per_tok=2,
    max_position_embeddings=512,
)
NEMOTRON_H = _made(
    "NemotronHConfig",
    hidden_size=64,
    layers_block_type=["mamba", "moe", "attention", "moe"],
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    mamba_num_heads=4,
    mamba_head_dim=16,
    ssm_state_size=16,
    n_groups=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    moe_shared_expert_intermediate_size=64,
    n_shared_experts=1,
)

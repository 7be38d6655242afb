"""DeepSeek models as an ``Architecture``: latent attention, shared experts.

Queries and keys are projected down and up again (multi-head latent attention, arXiv 2405.04434). Values are narrower
than keys; they are counted as wide as keys, as the kernels pad them.
"""

from __future__ import annotations

from dataclasses import replace

from core.models.architecture.architecture import Architecture, Attention, Experts, Layer, Linear
from core.models.architecture.config_values import MOST_LAYERS, ConfigValues


def read_deepseek(values: ConfigValues, family: str) -> Architecture:
    """The architecture of ``deepseek_v2`` and ``deepseek_v3``."""
    hidden, depth = values.count("hidden_size"), values.count("num_hidden_layers", most=MOST_LAYERS)
    linears, attention, norms = _attention(values, hidden)
    layer = Layer(depth, linears, attention, 0, other=2 * hidden + norms)
    width = values.count("intermediate_size")
    dense = replace(layer, linears=(*linears, *_network("mlp", hidden, width)), width=width)
    expert_width = values.count("moe_intermediate_size")
    shared = expert_width * values.count("n_shared_experts", 1)
    experts = Experts(
        count=values.count("n_routed_experts"),
        active=values.count("num_experts_per_tok"),
        hidden=hidden,
        width=expert_width,
    )
    # What the third version adds to the scores of experts is saved beside their weights.
    added = experts.count if family == "deepseek_v3" else 0
    sparse = replace(
        layer,
        linears=(*linears, *_network("mlp.shared_experts", hidden, shared)),
        width=shared,
        experts=experts,
        other=layer.other + added,
    )
    first = values.get("first_k_dense_replace", 0)
    first = min(first, depth) if isinstance(first, int) and not isinstance(first, bool) and first > 0 else 0
    layers = [replace(dense, count=first), replace(sparse, count=depth - first)]
    # Routers are kept in fp32, and so is what is added to their scores.
    wide = (depth - first) * (experts.router + added)
    return Architecture(
        family=family,
        hidden=hidden,
        vocabulary=values.count("vocab_size"),
        tied=values.flag("tie_word_embeddings", False),
        layers=tuple(layer for layer in layers if layer.count),
        prefix="model.layers",
        positions=values.count("max_position_embeddings") if values.get("max_position_embeddings") else None,
        other=hidden,
        wide=wide,
    )


def _attention(values: ConfigValues, hidden: int) -> tuple[tuple[Linear, ...], Attention, int]:
    """Linear layers of latent attention, the attention as the kernel sees it, and the parameters of its norms."""
    heads, rope = values.count("num_attention_heads"), values.count("qk_rope_head_dim", 64)
    plain, value = values.count("qk_nope_head_dim", 128), values.count("v_head_dim", 128)
    latent, bias = values.count("kv_lora_rank", 512), values.flag("attention_bias", False)
    queries, norms = heads * (plain + rope), latent
    if values.get("q_lora_rank") is None:
        spread: tuple[Linear, ...] = (Linear("self_attn.q_proj", hidden, queries),)
    else:
        rank = values.count("q_lora_rank")
        spread = (Linear("self_attn.q_a_proj", hidden, rank, bias), Linear("self_attn.q_b_proj", rank, queries))
        norms += rank
    linears = (
        *spread,
        Linear("self_attn.kv_a_proj_with_mqa", hidden, latent + rope, bias),
        Linear("self_attn.kv_b_proj", latent, heads * (plain + value)),
        Linear("self_attn.o_proj", heads * value, hidden, bias),
    )
    return linears, Attention(heads, heads, plain + rope), norms


def _network(name: str, hidden: int, width: int) -> tuple[Linear, ...]:
    return (
        Linear(f"{name}.gate_proj", hidden, width),
        Linear(f"{name}.up_proj", hidden, width),
        Linear(f"{name}.down_proj", width, hidden),
    )

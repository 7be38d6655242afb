"""Known model families: ``config.json`` to an :class:`~core.models.architecture.architecture.Architecture`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli

from core.errors import UserError
from core.models.architecture.architecture import Architecture, Attention, Experts, Layer, Linear, read_towers
from core.models.tables import TABLES
from core.models.text_part import is_tied
from core.text import one_line

#: Largest plausible dimension; a greater one is a mistake.
MOST = 1 << 31
#: Largest plausible number of layers.
MOST_LAYERS = 10_000
_OWN = "Copy the model's own config.json."
_ALIASES: dict[str, list[str]] = TABLES["aliases"]


@dataclass(frozen=True)
class ConfigValues:
    """Content of a ``config.json``: keys under any of the families' names, checked on access.

    Args:
        values: The content.
        where: Name of the model in messages.
    """

    values: Mapping[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        """A value under any of its names; null counts as missing."""
        for name in (key, *_ALIASES.get(key, ())):
            if self.values.get(name) is not None:
                return self.values[name]
        return default

    def count(self, key: str, default: int | None = None, *, most: int = MOST) -> int:
        """An integer of at least 1.

        Args:
            key: Its name.
            default: Value if it is missing; None if it is required.
            most: Largest valid value.

        Raises:
            UserError: If it is missing and has no default, or is something else.
        """
        value = self.get(key, default)
        if value is None:
            raise UserError(f"{self.where} has no {key}, so the shape of the model cannot be known.", _OWN)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < most:
            raise UserError(f"{self.where}: {key} is {one_line(repr(value), 40)}, not a size.", _OWN)
        return value

    def share(self, key: str) -> float:
        """A number from 0 to 1; 0 if missing.

        Raises:
            UserError: If it is something else.
        """
        value = self.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(f"{self.where}: {key} is {one_line(repr(value), 40)}, not a share.", _OWN)
        return float(value)

    def capped(self, key: str, default: bool) -> bool:
        """True if a cap is set; null means that it is not, a missing key means ``default``."""
        return bool(self.values[key]) if key in self.values else default

    def flag(self, key: str, default: bool) -> bool:
        """A boolean value."""
        return bool(self.get(key, default))


@dataclass(frozen=True)
class _Family:
    """Differences of a family's configuration from Llama's."""

    tied: bool = False
    heads: int | None = None
    kv_heads: int | None = None
    """Key and value heads if the configuration does not say; None for as many as query heads."""
    head_dim: int | None = None
    vocabulary: int | None = None
    qkv_bias: bool | str = "attention_bias"
    """True if the query, key and value projections have a bias, or the key that says so."""
    output_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = "mlp_bias"
    biased: bool = False
    """True if there are these biases if the configuration does not say."""
    normed: Literal["", "head", "all"] = ""
    norms: int = 2
    eager: bool = False
    """True if attention is eager, as no other kernel supports it."""
    sinks: bool = False
    """True if each head has an attention sink, a score of its own in the softmax."""
    softcap: bool = False
    """True if scores and logits are soft-capped if the configuration does not say; attention is then eager."""
    fused: bool = False
    window: str = ""
    """Key of the sliding window, if some of the layers have one."""
    expert_count: str = ""
    """Key of the number of experts."""
    expert_width: str = "moe_intermediate_size"
    expert_bias: bool = False
    """True if experts and router have a bias."""
    shared_expert: bool = False
    plain: Sequence[str] = ()
    """Names of the two linear layers of a feed-forward network without a gate; empty if it has one."""
    norm_bias: bool = False
    offset_norm: bool = False
    """True if norms scale by one plus their weight."""


_LIKE_LLAMA = {
    name: _Family(**rules)
    for name, rules in tomli.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}
#: Key and value heads of models whose file omits them: these families then have one for each query head.
_KV_AS_QUERIES = frozenset({"qwen2", "qwen3", "gemma"})
#: Families of multimodal models, to the family of their text part.
_TEXT_PARTS = {"gemma3": "gemma3_text", "mistral3": "mistral"}


def known_families() -> tuple[str, ...]:
    """The ``model_type`` of every supported family."""
    return (*_LIKE_LLAMA, *_BUILDERS, *_TEXT_PARTS)


def read_architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """Read an architecture from the content of ``config.json``.

    Args:
        config: Its content; of a composite model the text part is read.
        where: Name of the model in messages.

    Raises:
        UnknownFamilyError: If the family is not among :func:`known_families`.
        UserError: If it does not describe a causal language model, or omits a required key.
    """
    family = _model_type(config, where)
    if isinstance(config.get("text_config"), Mapping):
        text = {**config["text_config"]}
        text["tie_word_embeddings"] = is_tied(config, None)
        named = text.get("model_type")
        text["model_type"] = named if isinstance(named, str) else _TEXT_PARTS.get(family, family)
        text.pop("text_config", None)
        return _described(replace(read_architecture(text, where), towers=read_towers(config)), config)
    family = _TEXT_PARTS.get(family, family)
    values = ConfigValues(config, where)
    if family in _BUILDERS or family in _LIKE_LLAMA:
        rules = _LIKE_LLAMA.get(family)
        found = _BUILDERS[family](values, family) if rules is None else _like_llama(values, family, rules)
        return _described(found, config)
    raise UnknownFamilyError(
        f"{where} is of the family {one_line(family, 60)}, whose memory has to be measured.",
        "Plan a run with it: the model is built without its weights and measured.",
    )


def _described(architecture: Architecture, config: Mapping[str, Any]) -> Architecture:
    # The configuration of a loaded model may hold objects.
    return replace(architecture, description=json.dumps(config, sort_keys=True, default=str))


class UnknownFamilyError(UserError):
    """A family that the tables do not know; :mod:`core.models.architecture.measuring` measures its structure."""


def _model_type(config: Mapping[str, Any], where: str) -> str:
    family = config.get("model_type")
    if isinstance(family, str) and family:
        return family
    raise UserError(f"{where} has no model_type, so it is no model's.", _OWN)


def _bias(values: ConfigValues, rules: _Family, rule: bool | str) -> bool:
    return values.flag(rule, rules.biased) if isinstance(rule, str) else rule


def _attention(values: ConfigValues, family: str, rules: _Family, hidden: int) -> Attention:
    heads = values.count("num_attention_heads", rules.heads)
    kv_default = heads if family in _KV_AS_QUERIES or rules.kv_heads is None else rules.kv_heads
    window = values.get(rules.window) if rules.window else None
    if values.get("use_sliding_window") is False or not isinstance(window, int) or window < 1:
        window = None
    return Attention(
        heads=heads,
        kv_heads=values.count("num_key_value_heads", kv_default),
        head_dim=values.count("head_dim", rules.head_dim or max(hidden // heads, 1)),
        kernel="eager" if rules.softcap or rules.eager else "sdpa",
        normed=rules.normed == "head",
        softcap=rules.softcap and values.capped("attn_logit_softcapping", True),
        window=window,
        dropout=values.share("attention_dropout"),
    )


def _like_llama(values: ConfigValues, family: str, rules: _Family) -> Architecture:
    hidden, depth = values.count("hidden_size"), values.count("num_hidden_layers", most=MOST_LAYERS)
    attention = _attention(values, family, rules, hidden)
    norm = hidden * (2 if rules.norm_bias else 1)
    other = rules.norms * norm
    if rules.normed == "head":
        other += 2 * attention.head_dim
    elif rules.normed == "all":
        other += attention.queries + attention.keys
    if rules.sinks:
        other += attention.heads
    linears = _attention_linears(values, rules, attention, hidden)
    dense = Layer(depth, linears, attention, 0, norms=rules.norms, offset_norm=rules.offset_norm, other=other)
    if rules.plain:
        width = values.count("intermediate_size")
        bias = _bias(values, rules, rules.mlp_bias)
        network = (Linear(rules.plain[0], hidden, width, bias), Linear(rules.plain[1], width, hidden, bias))
        layers: tuple[Layer, ...] = (replace(dense, linears=(*linears, *network), width=width, gated=False),)
    elif rules.expert_count:
        layers = _with_experts(values, rules, dense, hidden, depth)
    else:
        layers = (_with_network(values, rules, dense, hidden),)
    return Architecture(
        family=family,
        hidden=hidden,
        vocabulary=values.count("vocab_size", rules.vocabulary),
        tied=values.flag("tie_word_embeddings", rules.tied),
        layers=layers,
        prefix="model.layers",
        positions=values.count("max_position_embeddings") if values.get("max_position_embeddings") else None,
        softcap=values.capped("final_logit_softcapping", rules.softcap),
        other=norm,
    )


def _attention_linears(values: ConfigValues, rules: _Family, attention: Attention, hidden: int) -> tuple[Linear, ...]:
    bias, queries, keys = _bias(values, rules, rules.qkv_bias), attention.queries, attention.keys
    output = Linear("self_attn.o_proj", queries, hidden, _bias(values, rules, rules.output_bias))
    if rules.fused:
        return (Linear("self_attn.qkv_proj", hidden, queries + 2 * keys, bias), output)
    return (
        Linear("self_attn.q_proj", hidden, queries, bias),
        Linear("self_attn.k_proj", hidden, keys, bias),
        Linear("self_attn.v_proj", hidden, keys, bias),
        output,
    )


def _with_network(values: ConfigValues, rules: _Family, layer: Layer, hidden: int) -> Layer:
    width, bias = values.count("intermediate_size"), _bias(values, rules, rules.mlp_bias)
    down = Linear("mlp.down_proj", width, hidden, bias)
    if rules.fused:
        network: tuple[Linear, ...] = (Linear("mlp.gate_up_proj", hidden, 2 * width, bias), down)
    else:
        network = (Linear("mlp.gate_proj", hidden, width, bias), Linear("mlp.up_proj", hidden, width, bias), down)
    return replace(layer, linears=(*layer.linears, *network), width=width)


def _with_experts(values: ConfigValues, rules: _Family, layer: Layer, hidden: int, depth: int) -> tuple[Layer, ...]:
    experts = Experts(
        count=values.count(rules.expert_count, 8),
        active=values.count("num_experts_per_tok", 2),
        hidden=hidden,
        width=values.count(rules.expert_width),
    )
    bias = experts.count * (2 * experts.width + hidden + 1) if rules.expert_bias else 0
    sparse = replace(layer, experts=experts, other=layer.other + bias)
    if rules.shared_expert:
        width = values.count("shared_expert_intermediate_size")
        shared = (*_shared_network("mlp.shared_expert", hidden, width), Linear("mlp.shared_expert_gate", hidden, 1))
        sparse = replace(sparse, linears=(*layer.linears, *shared), width=width)
    only = values.get("mlp_only_layers", ())
    plain_layers = {number for number in only if isinstance(number, int)} if isinstance(only, (list, tuple)) else set()
    step = values.count("decoder_sparse_step", 1)
    plain_layers |= {number for number in range(depth) if (number + 1) % step}
    count = len([number for number in plain_layers if 0 <= number < depth])
    if not count:
        return (sparse,)
    plain = replace(_with_network(values, rules, layer, hidden), count=count)
    return (plain,) if count == depth else (replace(sparse, count=depth - count), plain)


def _gpt(values: ConfigValues, family: str) -> Architecture:
    """GPT-2 and GPT-NeoX: queries, keys and values in one layer, and a feed-forward network without a gate."""
    is_gpt2 = family == "gpt2"
    hidden, depth = values.count("hidden_size"), values.count("num_hidden_layers", most=MOST_LAYERS)
    heads, width = (
        values.count("num_attention_heads"),
        values.count("intermediate_size", 4 * hidden if is_gpt2 else None),
    )
    positions = values.count("max_position_embeddings", 1024 if is_gpt2 else 2048)
    bias = is_gpt2 or values.flag("attention_bias", True)
    shapes = ((hidden, 3 * hidden, bias), (hidden, hidden, bias), (hidden, width, True), (width, hidden, True))
    names = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    if is_gpt2:
        names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    linears = tuple(Linear(name, *shape) for name, shape in zip(names, shapes, strict=True))
    attention = Attention(heads, heads, max(hidden // heads, 1))
    return Architecture(
        family=family,
        hidden=hidden,
        vocabulary=values.count("vocab_size", 50_257 if is_gpt2 else None),
        tied=values.flag("tie_word_embeddings", is_gpt2),
        layers=(Layer(depth, linears, attention, width, gated=False, other=4 * hidden),),
        prefix="transformer.h" if is_gpt2 else "gpt_neox.layers",
        positions=positions,
        learned_positions=is_gpt2,
        other=2 * hidden + (positions * hidden if is_gpt2 else 0),
    )


def _deepseek(values: ConfigValues, family: str) -> Architecture:
    """DeepSeek V2 and V3: multi-head latent attention (arXiv 2405.04434), shared experts.

    Values are narrower than keys; they are counted as wide as keys, as the kernels pad them.
    """
    hidden, depth = values.count("hidden_size"), values.count("num_hidden_layers", most=MOST_LAYERS)
    linears, attention, norms = _latent_attention(values, hidden)
    layer = Layer(depth, linears, attention, 0, other=2 * hidden + norms)
    width = values.count("intermediate_size")
    dense = replace(layer, linears=(*linears, *_shared_network("mlp", hidden, width)), width=width)
    expert_width = values.count("moe_intermediate_size")
    shared = expert_width * values.count("n_shared_experts", 1)
    experts = Experts(
        count=values.count("n_routed_experts"),
        active=values.count("num_experts_per_tok"),
        hidden=hidden,
        width=expert_width,
    )
    # The third version's corrections of the scores of experts are saved beside their weights.
    added = experts.count if family == "deepseek_v3" else 0
    sparse = replace(
        layer,
        linears=(*linears, *_shared_network("mlp.shared_experts", hidden, shared)),
        width=shared,
        experts=experts,
        other=layer.other + added,
    )
    first = values.get("first_k_dense_replace", 0)
    first = min(first, depth) if isinstance(first, int) and not isinstance(first, bool) and first > 0 else 0
    layers = [replace(dense, count=first), replace(sparse, count=depth - first)]
    # Routers are kept in fp32, and so are the corrections of their scores.
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


def _latent_attention(values: ConfigValues, hidden: int) -> tuple[tuple[Linear, ...], Attention, int]:
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


def _shared_network(name: str, hidden: int, width: int) -> tuple[Linear, ...]:
    return (
        Linear(f"{name}.gate_proj", hidden, width),
        Linear(f"{name}.up_proj", hidden, width),
        Linear(f"{name}.down_proj", width, hidden),
    )


_BUILDERS: dict[str, Callable[[ConfigValues, str], Architecture]] = {
    "gpt2": _gpt,
    "gpt_neox": _gpt,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}

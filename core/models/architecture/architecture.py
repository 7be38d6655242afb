"""Model architecture for memory planning: the shapes of its layers, and their module names as PEFT sees them.

It is read from ``config.json`` or a GGUF header, for the families in ``families.toml`` and a few more. A directory may
hold nothing but ``config.json``; if the weights are present too, the number of parameters is exact.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli

from core.errors import UserError
from core.models.architecture.gguf_header import read_gguf_header
from core.models.description import (
    as_files_are_tied,
    is_composite,
    is_tied,
    read_description,
    read_quantization,
    refuse_foreign,
    split_names,
)
from core.models.installed import Kernel, check_known, missing_kernels
from core.models.tables import TABLES
from core.models.tensors import Tensor, decoded, read_header
from core.text import one_line

#: Keys of a part's sizes in configurations, under all their names.
_WIDTH, _DEPTH = ("hidden_size", "embed_dim", "d_model"), ("num_hidden_layers", "depth", "encoder_layers", "num_layers")
_INNER = ("intermediate_size", "encoder_ffn_dim", "conf_ff_dim")
#: Largest plausible size.
_MOST = 1 << 20


@dataclass(frozen=True)
class Linear:
    """A linear layer.

    Args:
        name: Name within its decoder layer: ``self_attn.q_proj``.
        inputs: Input features.
        outputs: Output features.
        bias: Whether it has a bias.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of elements of its matrix."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Number of parameters: weights and bias."""
        return self.weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Attention:
    """Self-attention.

    Args:
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Features of one head.
        kernel: ``sdpa`` does not materialize scores, ``eager`` does.
        normed: Whether queries and keys are normalized, head by head.
        softcap: Whether the scores are soft-capped.
        window: Tokens of the sliding window; None without.
        dropout: Share of the scores dropped in training, from the model's own configuration.
    """

    heads: int
    kv_heads: int
    head_dim: int
    kernel: Literal["sdpa", "eager"] = "sdpa"
    normed: bool = False
    softcap: bool = False
    window: int | None = None
    dropout: float = 0.0

    @property
    def queries(self) -> int:
        """Features of all query heads of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Features of all key heads of a token; the values have as many."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Experts:
    """Mixture of experts. Its matrices are stacked into two tensors: gate and up projections, and down projections.

    transformers marks their class as experts (``use_experts_implementation``), so they can be quantized to 4 bits and
    get adapters; for other classes see :attr:`Layer.bare_experts`.

    Args:
        count: Number of experts.
        active: Experts per token.
        hidden: Input and output features.
        width: Features inside one expert.
        gated: Whether they have gate projections; without, the first tensor has up projections alone.
        name: Name of their module within the layer.
    """

    count: int
    active: int
    hidden: int
    width: int
    gated: bool = True
    name: str = "mlp.experts"

    @property
    def stacked(self) -> tuple[int, int]:
        """Number of elements of the stacked tensors: of the gate and up projections, and of the down projections."""
        one = self.count * self.hidden * self.width
        return (2 * one if self.gated else one), one

    @property
    def matrices(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Outputs and inputs of the matrices of one expert."""
        return ((2 if self.gated else 1) * self.width, self.hidden), (self.hidden, self.width)

    @property
    def names(self) -> tuple[str, str]:
        """Names of the matrices, in the same order."""
        return ("gate_up_proj" if self.gated else "up_proj"), "down_proj"

    @property
    def router(self) -> int:
        """Number of elements of the router's matrix."""
        return self.count * self.hidden

    @property
    def weights(self) -> int:
        """Number of elements of all their matrices, including the router's."""
        return sum(self.stacked) + self.router


@dataclass(frozen=True)
class Layer:
    """Decoder layers of one kind.

    Args:
        count: Number of such layers in the model.
        linears: Its linear layers in execution order.
        attention: Its attention.
        width: Intermediate features of the feed-forward network; 0 with experts only.
        gated: Whether the feed-forward network is gated.
        norms: Number of normalizations over the hidden size.
        offset_norm: Whether they scale by one plus their weight, in fp32, as in Gemma.
        experts: Its mixture of experts, if any.
        other: Parameters outside of the linear layers: norms.
        bare_experts: Parameters among ``other`` of experts that stay in 16 bit with any method, because transformers
            does not mark their class.
    """

    count: int
    linears: tuple[Linear, ...]
    attention: Attention
    width: int
    gated: bool = True
    norms: int = 2
    offset_norm: bool = False
    experts: Experts | None = None
    other: int = 0
    bare_experts: int = 0

    @property
    def parameters(self) -> int:
        """Number of parameters of one such layer."""
        experts = self.experts.weights if self.experts is not None else 0
        return sum(linear.parameters for linear in self.linears) + experts + self.other


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model on disk.

    Args:
        bytes: Total size of the weight files.
        largest: Size of the largest tensor.
        parameters: Number of elements of all tensors, once decoded.
        dtype: Most common dtype: ``BF16``, ``F16``, ``F32``; or the quantization that they are stored in.
    """

    bytes: int
    largest: int
    parameters: int
    dtype: str


@dataclass(frozen=True)
class Towers:
    """Parts of a composite model beside its language model, for images and sound; not loaded, as rows are text.

    Args:
        kinds: Names of their configurations: ``vision``, ``audio``.
        bytes: Their size in 16 bit, or in the files where these are there.
        is_exact: Whether it is counted in the files, not estimated by the configuration.
    """

    kinds: tuple[str, ...]
    bytes: int
    is_exact: bool = False


@dataclass(frozen=True)
class Architecture:
    """Architecture of a causal language model.

    Args:
        family: Its ``model_type``.
        hidden: Features of the hidden states.
        vocabulary: Size of the vocabulary.
        tied: Whether input embeddings and output head share their weights.
        layers: Its decoder layers by kind.
        prefix: Module name prefix before a layer's number: ``model.layers``.
        positions: Its longest sequence, in tokens; None if unknown.
        learned_positions: Whether position embeddings are learned, so that no longer sequence is possible.
        softcap: Whether the logits are soft-capped.
        other: Parameters outside layers, embeddings and head: the final norm, position embeddings.
        head_bias: Whether the output head has a bias.
        linears: Linear layers outside of the decoder layers, without the head.
        wide: Parameters that are loaded in fp32 whatever the precision.
        description: Content of its ``config.json``, from which the memory of its layers is measured
            (:mod:`core.models.architecture.measuring`).
        towers: Parts of a composite model beside the language model, which are not loaded.
        kernels: Optional kernels for its recurrent layers that are not installed.
        checkpoint: Its weights on disk, if present.
        tokenizer_bytes: Size of ``tokenizer.json``, if present.
    """

    family: str
    hidden: int
    vocabulary: int
    tied: bool
    layers: tuple[Layer, ...]
    prefix: str
    positions: int | None = None
    learned_positions: bool = False
    softcap: bool = False
    other: int = 0
    head_bias: bool = False
    linears: tuple[Linear, ...] = ()
    wide: int = 0
    description: str = ""
    towers: Towers | None = None
    kernels: tuple[Kernel, ...] = ()
    checkpoint: Checkpoint | None = None
    tokenizer_bytes: int | None = None

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return sum(layer.count for layer in self.layers)

    @property
    def embeddings(self) -> int:
        """Number of parameters of the input embeddings, and of the output head if it is not tied."""
        head = self.vocabulary if self.head_bias else 0
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + head

    @property
    def linear_weights(self) -> int:
        """Number of elements of the linear layers' matrices, which QLoRA quantizes."""
        inside = sum(layer.count * linear.weights for layer in self.layers for linear in layer.linears)
        return inside + sum(linear.weights for linear in self.linears)

    @property
    def has_experts(self) -> bool:
        """True if it has experts that can be taken to 4 bits and get adapters."""
        return any(layer.experts is not None for layer in self.layers)

    @property
    def bare_experts(self) -> int:
        """Number of elements of all experts that stay in 16 bit whatever the method; see :class:`Layer`."""
        return sum(layer.count * layer.bare_experts for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        outside = self.other + sum(linear.parameters for linear in self.linears)
        return self.embeddings + outside + sum(layer.count * layer.parameters for layer in self.layers)


def read_towers(config: Mapping[str, Any]) -> Towers:
    """Estimate the towers of a composite model from its ``config.json``: attention and feed-forward per layer."""
    kinds, parameters = [], 0
    for key, part in config.items():
        if not key.endswith("_config") or key == "text_config" or not isinstance(part, Mapping):
            continue
        kinds.append(key.removesuffix("_config"))
        width, depth, inner = (_first(part, names) for names in (_WIDTH, _DEPTH, _INNER))
        if width and depth:
            parameters += depth * (4 * width * width + 2 * width * (inner or 4 * width))
    return Towers(tuple(kinds), 2 * parameters)


def _first(part: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    values = (part.get(name) for name in names)
    return next((value for value in values if type(value) is int and 0 < value < _MOST), None)


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
    for name, rules in tomli.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8")).items()
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
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise UserError(f"{where} has no model_type, so it is not a model's.", _OWN)
    if is_composite(config):
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


_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class Unmeasured:
    """Model of a family that the tables do not know.

    Args:
        description: Content of its ``config.json``.
        where: Name of the model in messages.
    """

    description: str
    where: str


def read_model(path: Path) -> Architecture | Unmeasured:
    """Read the architecture of a model, unless its structure has to be measured.

    Args:
        path: As for :func:`load_architecture`.

    Raises:
        UserError: As that function; also if its description asks for code of others.
    """
    if path.is_file():
        return read_architecture(read_gguf_header(path).config(str(path)), str(path))
    config_path = path / "config.json"
    config = _read_config(path)
    files = _read_files(path, config)
    described = as_files_are_tied(config, files.tensors)
    # To be measured, the model is built from its description.
    refuse_foreign(config, config_path)
    try:
        architecture = read_architecture(described, str(config_path))
    except UnknownFamilyError:
        check_known(config, path)
        return Unmeasured(json.dumps(described, sort_keys=True), str(config_path))
    return _complete(architecture, path, config, files)


def complete(architecture: Architecture, path: Path) -> Architecture:
    """Add the facts from the other files of a model's directory.

    Args:
        architecture: By its configuration.
        path: The directory.
    """
    config = _read_config(path)
    if is_composite(config):
        architecture = replace(architecture, towers=read_towers(config))
    return _complete(architecture, path, config, _read_files(path, config))


def _complete(architecture: Architecture, path: Path, config: dict[str, Any], files: _Files) -> Architecture:
    if (tokenizer := path / "tokenizer.json").is_file():
        architecture = replace(architecture, tokenizer_bytes=tokenizer.stat().st_size)
    architecture = replace(architecture, kernels=missing_kernels(config))
    return _with_checkpoint(architecture, files)


@dataclass(frozen=True)
class _Files:
    """Headers of the weight files: the tensors once decoded, the size of the files, and their quantization, if any.

    Decoded weights are no views of the file, whatever their dtype.
    """

    tensors: Mapping[str, Tensor]
    bytes: int
    quantization: str | None


def _read_files(path: Path, config: dict[str, Any]) -> _Files:
    files = sorted(path.glob("*.safetensors"))
    quantization = read_quantization(path, config)
    name = quantization.name if quantization is not None else None
    try:
        stored = {name: tensor for file in files for name, tensor in read_header(file).items()}
        tensors = decoded(path, stored, quantization).tensors
        return _Files(tensors, sum(file.stat().st_size for file in files), name)
    except (UserError, OSError):
        # Defects of the weights are reported when they are to be loaded.
        return _Files({}, 0, name)


def _read_config(directory: Path) -> dict[str, Any]:
    if (config := read_description(directory / "config.json")) is not None:
        return config
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory} holds an adapter, not a model.", "Give the model that the adapter was trained on."
        )
    raise UserError(
        f"{directory} has no config.json, so it is not a model.",
        "Give a directory with at least the model's config.json, or a GGUF file.",
    )


def _with_checkpoint(architecture: Architecture, files: _Files) -> Architecture:
    """The architecture with its ``checkpoint``, of a composite model that of its text part, and with its towers
    counted; unchanged without tensors.
    """
    counted, size = dict(files.tensors), files.bytes
    if (towers := architecture.towers) is not None and counted:
        others = [counted.pop(name) for name in split_names(counted).others]
        left_out = sum(tensor.elements * _BYTES.get(tensor.dtype, 4) for tensor in others)
        architecture = replace(architecture, towers=replace(towers, bytes=left_out, is_exact=True))
        size -= left_out
    if not counted:
        return architecture
    kinds = Counter[str]()
    for tensor in counted.values():
        kinds[tensor.dtype] += tensor.elements
    largest = max(tensor.elements * _BYTES.get(tensor.dtype, 4) for tensor in counted.values())
    stored = files.quantization or kinds.most_common(1)[0][0]
    checkpoint = Checkpoint(bytes=size, largest=largest, parameters=kinds.total(), dtype=stored)
    return replace(architecture, checkpoint=checkpoint)

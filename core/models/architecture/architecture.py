"""Model architecture for memory planning: the shapes of its layers, and their module names as PEFT sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.models.installed import Kernel

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

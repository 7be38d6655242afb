"""What a model is made of, as far as memory goes: the shapes of its layers, and the names PEFT knows them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Linear:
    """A linear layer.

    Args:
        name: Within its decoder layer: ``self_attn.q_proj``.
        inputs: Features in.
        outputs: Features out.
        bias: Whether it adds one.
        transposed: Whether its matrix lies the other way round, as that of transformers' ``Conv1D``.
        among_all: Whether it gets an adapter for ``all-linear``. Where PEFT puts adapters on stacked experts instead of
            layers of these names, other layers of these names get none.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    among_all: bool = True
    transposed: bool = False

    @property
    def weights(self) -> int:
        """Elements of its matrix."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Attention:
    """Self-attention.

    Args:
        heads: Of the queries.
        kv_heads: Of keys and values.
        head_dim: Features of one head.
        kernel: ``sdpa`` holds no scores, ``eager`` does.
        fused: Queries, keys and values come out of one linear layer.
        rotary: Positions turn queries and keys, which makes copies of them.
        normed: What queries and keys are normalized over: nothing, each head, or all heads together.
        softcap: The scores are capped.
        window: Tokens that a layer with a sliding window looks back; None without.
        dropout: Share of the scores dropped in training, by the model's own configuration.
        uneven: Values are narrower than keys.
    """

    heads: int
    kv_heads: int
    head_dim: int
    kernel: Literal["sdpa", "eager"] = "sdpa"
    fused: bool = False
    rotary: bool = True
    normed: Literal["", "head", "all"] = ""
    softcap: bool = False
    window: int | None = None
    dropout: float = 0.0
    uneven: bool = False

    @property
    def queries(self) -> int:
        """Features of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Features of all keys of a token; the values have as many."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Experts:
    """A mixture of experts. Its matrices are stacked into one tensor, which bitsandbytes does not quantize.

    Args:
        count: How many there are.
        active: How many of them see a token.
        hidden: Features in and out.
        width: Features inside one expert.
        adapted: Whether PEFT puts adapters on them for ``all-linear``.
        clamped: Gate and inner values are clamped and the latter shifted, which makes as many tensors again.
    """

    count: int
    active: int
    hidden: int
    width: int
    adapted: bool
    clamped: bool = False

    @property
    def weights(self) -> int:
        """Elements of all their matrices, the router's among them."""
        return self.count * (3 * self.hidden * self.width + self.hidden)


@dataclass(frozen=True)
class Layer:
    """Decoder layers of one kind.

    Args:
        count: How many layers of the model are like this.
        linears: Its linear layers in the order in which they are run.
        attention: Its attention.
        width: Features inside the feed-forward network; 0 where there are experts only.
        gate: How the feed-forward network is gated: not at all, by a second linear layer, or by half of a fused one.
        activation_copies: Tensors of the inner width that the activation function keeps for backward.
        norms: Normalizations over the hidden size.
        norm: Their kind.
        offset_norm: What they weigh with is one more than their weight, in fp32, as in Gemma.
        parallel: Attention and feed-forward start from the same residual.
        dropout: Share of the outputs of attention and feed-forward dropped in training, by the model's configuration.
        experts: Its experts, where it has any.
        other: Parameters in none of the linear layers: norms.
    """

    count: int
    linears: tuple[Linear, ...]
    attention: Attention
    width: int
    gate: Literal["", "separate", "fused"] = "separate"
    activation_copies: int = 1
    norms: int = 2
    norm: Literal["rms", "layer"] = "rms"
    offset_norm: bool = False
    parallel: bool = False
    dropout: float = 0.0
    experts: Experts | None = None
    other: int = 0

    @property
    def parameters(self) -> int:
        """Of one such layer."""
        experts = self.experts.weights if self.experts is not None else 0
        return sum(linear.parameters for linear in self.linears) + experts + self.other


@dataclass(frozen=True)
class Checkpoint:
    """The weights as they lie on disk.

    Args:
        bytes: Of all weight files.
        largest: Bytes of the largest tensor.
        parameters: Elements of all tensors.
        dtype: Of most of them: ``BF16``, ``F16``, ``F32``.
    """

    bytes: int
    largest: int
    parameters: int
    dtype: str


@dataclass(frozen=True)
class Tower:
    """A part of the model that is loaded but not run, as rows are text: its weights count, and adapters on them.

    Args:
        prefix: What stands before the names of its modules: ``model.vision_tower``.
        linears: All its linear layers.
        other: Parameters in none of them.
    """

    prefix: str
    linears: tuple[Linear, ...]
    other: int

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(linear.parameters for linear in self.linears) + self.other


@dataclass(frozen=True)
class Architecture:
    """A causal language model.

    Args:
        family: Its ``model_type``.
        hidden: Features of a token between the layers.
        vocabulary: Tokens it knows.
        tied: Input embeddings and output head share their weights.
        layers: Its decoder layers by kind.
        prefix: What stands before a layer's number in the names of its modules: ``model.layers``.
        positions: The longest row it was made for; None where unknown.
        learned_positions: Whether the positions are a table, which no longer row fits.
        softcap: The logits are capped.
        other: Parameters outside layers, embeddings and head: the last norm, a table of positions.
        head_bias: The output head adds a bias.
        guessed: The family is not known; it was taken for one like Llama.
        tower: What is loaded beside the text's part.
        checkpoint: Its weights on disk, where they are there.
        tokenizer_bytes: Of ``tokenizer.json``, where it is there.
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
    guessed: bool = False
    tower: Tower | None = None
    checkpoint: Checkpoint | None = None
    tokenizer_bytes: int | None = None

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return sum(layer.count for layer in self.layers)

    @property
    def embeddings(self) -> int:
        """Parameters of the input embeddings, and of the output head where it is not the same."""
        head = self.vocabulary if self.head_bias else 0
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + head

    @property
    def linear_weights(self) -> int:
        """Elements of the linear layers' matrices, those that QLoRA quantizes."""
        inside = sum(layer.count * linear.weights for layer in self.layers for linear in layer.linears)
        return inside + sum(linear.weights for linear in (self.tower.linears if self.tower is not None else ()))

    @property
    def parameters(self) -> int:
        """All parameters."""
        tower = self.tower.parameters if self.tower is not None else 0
        return self.embeddings + self.other + tower + sum(layer.count * layer.parameters for layer in self.layers)

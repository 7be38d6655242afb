"""What may be known beside a configuration: the model's shape, the device, the room on the disk, the rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core import paths

#: A config.json is a few kilobytes; what is larger is none.
_CONFIG_LIMIT = 1 << 20


@dataclass(frozen=True)
class ModelShape:
    """A decoder's dimensions, as its ``config.json`` has them.

    Args:
        layers: Transformer blocks.
        hidden: Width of the residual stream.
        queries: Width of all query heads together.
        keys: Width of all key heads together, and of all value heads.
        intermediate: Width inside of the feed-forward layer (of one expert, where there are several).
        experts: Feed-forward layers side by side; 1 without a mixture.
        gated: Whether the feed-forward layer has a gate: three matrices instead of two.
        vocabulary: Rows of the embedding.
        tied: Whether the output head is the embedding.
        positions: The longest row that it is made for; None where it does not say.
        learned_positions: Whether positions are a table that ends there.
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    intermediate: int
    experts: int
    gated: bool
    vocabulary: int
    tied: bool
    positions: int | None
    learned_positions: bool

    @property
    def _linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of one block."""
        attention = [(self.hidden, self.queries), (self.queries, self.hidden), *[(self.hidden, self.keys)] * 2]
        forward = [(self.hidden, self.intermediate)] * (2 if self.gated else 1) + [(self.intermediate, self.hidden)]
        return attention + forward * self.experts

    @property
    def parameters(self) -> int:
        """Weights in all, norms and biases left out (less than a thousandth)."""
        inside = self.layers * sum(inputs * outputs for inputs, outputs in self._linears)
        tables = self.vocabulary + (self.positions or 0 if self.learned_positions else 0)
        return inside + self.hidden * (tables + (0 if self.tied else self.vocabulary))

    def adapter_parameters(self, rank: int) -> int:
        """Weights of LoRA adapters of this rank on every linear layer but the head."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self._linears)


@dataclass(frozen=True)
class Facts:
    """What is known; None where it is not.

    Args:
        model: The base model's shape.
        device: What will be trained on.
        bf16: Whether that device does bf16 well.
        device_bytes: Memory of the card in all.
        free_bytes: Room on the disk of the runs.
        rows: Rows that are trained on in an epoch.
    """

    model: ModelShape | None = None
    device: Literal["cuda", "cpu"] | None = None
    bf16: bool | None = None
    device_bytes: int | None = None
    free_bytes: int | None = None
    rows: int | None = None


def read_shape(base: str) -> ModelShape | None:
    """The shape of a model that is a directory or a prepared model; None where it cannot be told."""
    # Other than Path.expanduser, this leaves the home of a user who does not exist as it is.
    for directory in (Path(os.path.expanduser(base)), paths.models_dir() / base):
        try:
            path = directory / "config.json"
            if path.is_file() and path.stat().st_size <= _CONFIG_LIMIT:
                return shape_of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError):
            continue
    return None


def shape_of(config: object) -> ModelShape | None:
    """The shape that a ``config.json`` of a decoder tells; None where it is none.

    The names are those of transformers: of Llama and its relatives, of GPT-2, and of models whose text part is in
    ``text_config``.
    """
    if not isinstance(config, Mapping):
        return None
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        config = {**config, **inner}
    hidden = _number(config, "hidden_size", "n_embd")
    layers = _number(config, "num_hidden_layers", "n_layer")
    heads = _number(config, "num_attention_heads", "n_head")
    vocabulary = _number(config, "vocab_size")
    if not (hidden and layers and heads and vocabulary):
        return None
    head = _number(config, "head_dim") or hidden // heads
    kind = str(config.get("model_type", ""))
    # These have two matrices in the feed-forward layer, others have a gate too.
    plain = kind in ("gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "phi", "bloom", "starcoder2", "falcon")
    experts = _number(config, "num_local_experts", "num_experts", "n_routed_experts") or 1
    inside = _number(config, "moe_intermediate_size") if experts > 1 else None
    return ModelShape(
        layers=layers,
        hidden=hidden,
        queries=heads * head,
        keys=(_number(config, "num_key_value_heads") or heads) * head,
        intermediate=inside or _number(config, "intermediate_size", "n_inner") or 4 * hidden,
        experts=experts,
        gated=not plain,
        vocabulary=vocabulary,
        # Where the file is silent, transformers ties.
        tied=config.get("tie_word_embeddings", True) is not False,
        positions=_number(config, "max_position_embeddings", "n_positions"),
        learned_positions=kind in ("gpt2", "gpt_neo", "opt"),
    )


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40:
            return value
    return None

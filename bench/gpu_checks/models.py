"""Models of the checks: real shapes with random weights, made without a download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

#: Words of the tokenizer, for rows that are text.
WORDS = 400


@dataclass(frozen=True)
class ModelShape:
    """The shape of a Llama or a Mistral.

    Args:
        name: Its directory.
        vocabulary: Tokens.
        hidden: Features.
        intermediate: Features within the feed-forward network.
        layers: Layers.
        heads: Heads of the queries.
        key_heads: Heads of the keys.
        tied: Whether the head is the embeddings.
        window: Sliding window in tokens; None for a Llama, which has none.
    """

    name: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    tied: bool = False
    window: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Content of ``config.json``."""
        kind = "llama" if self.window is None else "mistral"
        return {
            "model_type": kind,
            "architectures": [f"{kind.capitalize()}ForCausalLM"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.hidden // self.heads,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
            **({} if self.window is None else {"sliding_window": self.window}),
        }

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of its tensors."""
        hidden, wide, keys = self.hidden, self.intermediate, self.hidden // self.heads * self.key_heads
        yield "model.embed_tokens.weight", (self.vocabulary, hidden)
        for layer in range(self.layers):
            for name, shape in (
                ("self_attn.q_proj", (hidden, hidden)),
                ("self_attn.k_proj", (keys, hidden)),
                ("self_attn.v_proj", (keys, hidden)),
                ("self_attn.o_proj", (hidden, hidden)),
                ("mlp.gate_proj", (wide, hidden)),
                ("mlp.up_proj", (wide, hidden)),
                ("mlp.down_proj", (hidden, wide)),
            ):
                yield f"model.layers.{layer}.{name}.weight", shape
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"model.layers.{layer}.{norm}.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, hidden)

    @property
    def adapted(self) -> list[tuple[int, int]]:
        """Outputs and inputs of the linear layers that get adapters."""
        return [(shape[0], shape[1]) for name, shape in self.weights() if "_proj" in name]

    @property
    def bytes(self) -> int:
        """Bytes of its weights in 16 bits."""
        return sum(2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for _, shape in self.weights())


#: Llama-3.1-8B, Llama-3.2-1B, and two layers as wide as the former, plain and with Mistral's window made shorter.
EIGHT = ModelShape("8b", 128256, 4096, 14336, 32, 32, 8)
ONE = ModelShape("1b", 128256, 2048, 8192, 16, 32, 8, tied=True)
WIDE = ModelShape("wide", 8192, 4096, 14336, 2, 32, 8)
WINDOWED = replace(WIDE, name="windowed", window=512)


def tiny(shape: ModelShape) -> ModelShape:
    """As small as the checks make sense with."""
    window = None if shape.window is None else 16
    layers = 4 if shape.name == EIGHT.name else 2
    return replace(
        shape, vocabulary=6144, hidden=64, intermediate=128, layers=layers, heads=4, key_heads=2, window=window
    )


def make_model(shape: ModelShape, parent: Path) -> Path:
    """The directory of a model, which is made if it is not there.

    Tensors of one shape have the same values: random ones for all of them take a minute more, and nothing that is
    measured here depends on them.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from core.worker.model.safetensors_io import write_tensors

    directory = parent / shape.name
    if (directory / "tokenizer.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    drawn: dict[tuple[int, ...], torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, size in shape.weights():
        if size not in drawn:
            drawn[size] = _draw(size, generator)
        tensors[name] = drawn[size]
    write_tensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(shape.config, indent=1))
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, "w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.save_pretrained(directory)
    return directory


def _draw(size: tuple[int, ...], generator: Any) -> Any:
    import torch

    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    # A block that is repeated: drawing half a billion values takes ten seconds.
    rows = min(size[0], 512)
    block = (0.02 * torch.randn(rows, size[1], generator=generator)).to(torch.bfloat16)
    return block.repeat(-(-size[0] // rows), 1)[: size[0]].contiguous()

"""Training steps that are run on the stand-in card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.core.models.architecture import published

#: Two layers of each kind; no two sizes of a model are the same.
DENSE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
SLIDING = {**DENSE, "model_type": "mistral", "sliding_window": 256}
MIXTURE = {
    **DENSE,
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 384,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "head_dim": 64,
}


@dataclass(frozen=True)
class Case:
    """A step.

    Args:
        model: The model's ``config.json``.
        method: ``[method]`` of the configuration.
        train: ``[train]`` of it.
        memory: ``[memory]`` of it.
        rows: Rows of a micro-batch.
        length: Their tokens.
        micro_batches: Micro-batches of a step.
        prefix: Tokens that all rows begin with.
        kept: Layers whose activations are kept; None for all.
        offload: The inputs of the others are in host memory.
        pack: Rows lie one behind another, each of a length of its own.
        mixed: Micro-batches have different rows and lengths, within one budget of tokens.
        attention_alone: Other layers are left as they are, as those that are compiled.
        widened: Copies of hidden states in fp32 that are known: adapters of PEFT with a norm, norms that are
            left to transformers, the sums of a mixture's outputs, and the product with the weight of each answer.
        mutation: Fault that the tracer has to find.
    """

    model: Mapping[str, Any]
    method: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 2
    length: int = 512
    micro_batches: int = 1
    prefix: int = 0
    kept: int | None = None
    offload: bool = False
    pack: bool = False
    mixed: bool = False
    attention_alone: bool = False
    widened: int = 0
    mutation: str = ""

    @property
    def sections(self) -> dict[str, Any]:
        """The configuration."""
        return {
            "data": {"train": "rows.jsonl"},
            "method": dict(self.method),
            "train": {
                "precision": "bf16",
                "batch_size": self.rows * self.micro_batches,
                "max_length": self.length,
                "packing": self.pack,
                "share_prefix": self.prefix > 0,
                **self.train,
            },
            "memory": {"keep_dequantized": "off", **self.memory},
        }

    @property
    def has_kernels(self) -> bool:
        """True if Triton's kernels are used."""
        return bool(self.train.get("fused_layers", True)) and not self.attention_alone

    @property
    def hidden(self) -> int:
        """Elements of the hidden states of a micro-batch."""
        return self.rows * self.length * int(self.model["hidden_size"])


_8BIT = {"optimizer": "adamw_8bit"}
_BF16: dict[str, Case] = {
    "dense": Case(DENSE),
    "four micro-batches": Case(DENSE, micro_batches=4),
    "dropout": Case(DENSE, {"dropout": 0.05}),
    "LoRA": Case(DENSE, {"name": "lora"}),
    "recomputed": Case(DENSE, kept=0),
    "offloaded": Case(DENSE, kept=0, offload=True),
    "sliding window": Case(SLIDING),
    "mixture": Case(MIXTURE, widened=4),
    "mixture, recomputed": Case(MIXTURE, kept=0, widened=4),
    "preference pairs": Case(DENSE, train={"objective": "dpo"}, widened=1),
    "packed": Case(DENSE, pack=True),
    "shared beginning": Case(DENSE, prefix=200),
    "DoRA": Case(DENSE, {"dora": True}, widened=80),
    "attention alone": Case(DENSE, attention_alone=True, widened=9),
    "layers of transformers": Case(DENSE, train={"fused_layers": False}, widened=9),
}
#: Steps of two layers.
KINDS: dict[str, Case] = {
    **_BF16,
    **{f"{name}, fp16": replace(case, train={**case.train, "precision": "fp16"}) for name, case in _BF16.items()},
    "full": Case(DENSE, {"name": "full"}, _8BIT, {"optimizer_in_backward": "off"}),
    "full, updated in backward": Case(DENSE, {"name": "full"}, _8BIT, kept=0),
}
#: Faults in a step of two layers, and the kind of finding that shows each.
MUTATIONS: dict[str, str] = {
    "a sum on the CPU": "two devices",
    "float() in a layer": "waits",
    "a list as an index": "waits",
    "a matrix in fp32": "two dtypes",
    "a layer in fp32": "fp32",
}
#: Llama 3.2's other size, whose shapes differ from that of 1B in these.
LLAMA_3_2_3B = {
    **published.LLAMA_3_2_1B,
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 128,
}
#: Steps of published shapes, for the plan.
PUBLISHED: dict[str, Case] = {
    "8B, 2 x 2048, kept": Case(published.LLAMA_3_8B, length=2048),
    "8B, 4 x 2048, recomputed": Case(published.LLAMA_3_8B, rows=4, length=2048, kept=0),
    "3B, 4 x 2048, kept": Case(LLAMA_3_2_3B, rows=4, length=2048),
    "1B, 4 x 2048, kept": Case(published.LLAMA_3_2_1B, rows=4, length=2048),
    "mixture, 1 x 2048, recomputed": Case(
        {**published.QWEN_3_30B_A3B, "num_hidden_layers": 4}, rows=1, length=2048, kept=0
    ),
    "8B, full, 1 x 2048, recomputed": Case(published.LLAMA_3_8B, {"name": "full"}, _8BIT, rows=1, length=2048, kept=0),
    "8B, mixed lengths, kept": Case(published.LLAMA_3_8B, length=2048, micro_batches=2, mixed=True),
    "8B, mixed lengths, recomputed": Case(
        published.LLAMA_3_8B, rows=4, length=2048, micro_batches=2, mixed=True, kept=0
    ),
}

"""Cases of ``bench/memory.py``: small models in the shapes of real families, and the settings of their runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: The starter model's name; it has its own shape.
STARTER = "smollm2-135m-instruct"

#: Per family: its ``model_type`` and ``config.json``, real proportions made small.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "llama-wide": {
        "model_type": "llama",
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "llama-3": {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 6,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 65536,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "mistral": {
        "model_type": "mistral",
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32768,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "granite": {
        "model_type": "granite",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "gemma": {
        "model_type": "gemma",
        "hidden_size": 512,
        "intermediate_size": 4096,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "vocab_size": 192000,
    },
    "gemma2": {
        "model_type": "gemma2",
        "hidden_size": 576,
        "intermediate_size": 2304,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "sliding_window": 4096,
        "vocab_size": 128000,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "vocab_size": 131072,
    },
    "phi3": {
        "model_type": "phi3",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32064,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 8,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
    "gpt-neox": {
        "model_type": "gpt_neox",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "vocab_size": 50304,
    },
}


@dataclass(frozen=True)
class Case:
    """A measurement.

    Args:
        name: Its subject.
        shape: A key of :data:`SHAPES`, or :data:`STARTER`.
        lengths: Tokens of the rows of one optimizer step.
        settings: ``section.key`` to value, beyond the defaults.
        supervised: Share of supervised tokens in each row, at its end.
    """

    name: str
    shape: str
    lengths: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    supervised: float = 0.5


_OFF = {"memory.gradient_checkpointing": "off"}
_ON = {"memory.gradient_checkpointing": "on"}
_LORA = {"method.name": "lora"}
_FULL = {"method.name": "full"}
_FREEZE = {"method.name": "freeze"}

CASES: tuple[Case, ...] = (
    Case("llama, short rows", "llama", (128,) * 8),
    Case("llama, long rows, checkpointing", "llama", (2048,), _ON),
    Case("llama, LoRA, rank 64", "llama", (512,) * 2, {**_LORA, "method.rank": 64}),
    Case(
        "llama, attention only, 8-bit AdamW",
        "llama",
        (512,) * 2,
        {"method.target_modules": ["q_proj", "v_proj"], "train.optimizer": "adamw_8bit"},
    ),
    Case("llama, LoRA, fp32", "llama", (512,) * 2, {**_LORA, "train.precision": "fp32"}),
    Case("llama, dropout", "llama", (512,) * 2, {"method.dropout": 0.1}),
    Case("llama, one row at once", "llama", (700, 300, 256, 64), {"train.micro_batch_size": 1}),
    Case("wide llama, rank 256", "llama-wide", (256,) * 4, {"method.rank": 256}),
    Case(
        "wide llama, rank 256, paged 8-bit AdamW",
        "llama-wide",
        (256,) * 4,
        {"method.rank": 256, "train.optimizer": "paged_adamw_8bit"},
    ),
    Case("wide llama, LoRA, checkpointing", "llama-wide", (1024, 256), {**_LORA, **_ON}),
    Case("llama-3, all learned", "llama-3", (512,), {}, 1.0),
    Case("llama-3, LoRA, checkpointing, all learned", "llama-3", (1024,), {**_LORA, **_ON}, 1.0),
    Case("wide llama, full, inside backward", "llama-wide", (256,) * 4, {**_FULL, "train.optimizer": "adamw_8bit"}),
    Case(
        "wide llama, full, inside backward, checkpointing",
        "llama-wide",
        (512,) * 4,
        {**_FULL, **_ON, "train.optimizer": "adamw_8bit"},
    ),
    Case("llama, full, inside backward, AdamW", "llama", (512,) * 2, _FULL),
    Case(
        "wide llama, full, after the window",
        "llama-wide",
        (256,) * 4,
        {**_FULL, "memory.optimizer_in_backward": "off", "train.optimizer": "adamw_8bit"},
    ),
    Case("qwen2, full, inside backward, tied head", "qwen2", (512,), {**_FULL, "train.optimizer": "adamw_8bit"}, 1.0),
    Case("wide llama, the last layer", "llama-wide", (512,) * 2, {**_FREEZE, "method.trainable_layers": 1}),
    Case("qwen3, the first two layers", "qwen3", (512,) * 2, {**_FREEZE, "method.trainable_end": "first"}),
    Case("qwen2", "qwen2", (512,) * 2),
    Case("qwen2, LoRA, checkpointing", "qwen2", (1024,), {**_LORA, **_ON}),
    Case("qwen3", "qwen3", (1024, 256)),
    Case(
        "qwen3, MLP only, rank 32",
        "qwen3",
        (512,) * 2,
        {"method.target_modules": ["gate_proj", "up_proj", "down_proj"], "method.rank": 32},
    ),
    Case("gemma, big vocabulary", "gemma", (512,) * 2),
    Case("gemma2, eager attention", "gemma2", (1024,)),
    Case("gemma2, eager attention, checkpointing", "gemma2", (1024,), _ON),
    Case("gemma3", "gemma3", (512,) * 2),
    Case("phi3, fused projections", "phi3", (512,) * 2),
    Case("gpt2", "gpt2", (512,) * 2),
    Case("gpt-neox", "gpt-neox", (512,) * 2),
    Case("gpt-neox, checkpointing, rank 128", "gpt-neox", (1024,), {**_ON, "method.rank": 128}),
    Case("starter model, defaults", STARTER, (256,) * 4),
    Case("starter model, long rows, checkpointing", STARTER, (2048,), _ON),
    Case("llama, DoRA", "llama", (512,) * 2, {"method.dora": True}),
    # CPU_SLACK and CPU_FRAGMENTATION in core/memory/phases.py were set without these.
    Case("gemma, checkpointing", "gemma", (1024,), _ON, 0.25),
    Case("mistral", "mistral", (1024,)),
    Case("granite, LoRA, rank 128", "granite", (300,) * 3, {**_LORA, "method.rank": 128}),
    Case("gpt2, LoRA, checkpointing", "gpt2", (1024,), {**_LORA, **_ON}),
    Case("starter model, LoRA", STARTER, (200, 150, 100, 90), _LORA),
    Case("starter model, short rows", STARTER, (40,) * 8),
    Case("qwen3, fp32", "qwen3", (300,) * 2, {"train.precision": "fp32"}),
    Case("starter model, LoRA, fp32, checkpointing", STARTER, (512,) * 2, {**_LORA, **_ON, "train.precision": "fp32"}),
)

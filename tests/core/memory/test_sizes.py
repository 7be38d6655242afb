"""Host memory of optimizer states."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from core.memory.sizes import answer_bytes, kv_bytes, optimizer_bytes, states_host_bytes
from core.models.architecture.architecture import read_architecture
from core.worker.generate.room import _sliding_layers
from tests.cases import cases

TENSORS = [(4096, 4096, 3), (1, 4096, 2), (128, 4096, 1)]
ALL = sum(optimizer_bytes("paged_adamw_8bit", rows * columns, columns) * count for rows, columns, count in TENSORS)


@cases(
    ("kind", "expected"),
    [
        ("paged_adamw_8bit", ALL),
        ("adamw", 4 * 4096**2 + 2),
        ("adamw_8bit", 4096**2 + 4 * 4096**2 // 256),
        ("lion_8bit", 4096**2 + 4 * 4096**2 // 256),
    ],
)
def test_paged_states_count_whole_and_others_by_the_largest(kind: str, expected: int) -> None:
    assert states_host_bytes(kind, TENSORS) == expected
    assert states_host_bytes(kind, []) == states_host_bytes(kind, [(4096, 4096, 0)]) == 0


SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen3": {},
    "gemma2": {"sliding_window": 24},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
}


@cases("family", FAMILIES)
def test_keys_and_values_match_the_cache(family: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = 60
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, tokens, dtype=torch.long), cache=cache, use_cache=True)
    held = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    architecture, windowed = read_architecture(config.to_dict(), family), _sliding_layers(config)
    # transformers keeps one token less than the window, as the next one is in it too.
    assert kv_bytes(architecture, tokens, 4, windowed) == held + windowed * 2 * 2 * 16 * 4
    assert windowed == sum(layer.is_sliding for layer in cache.layers)


def test_what_is_kept_is_not_asked_for_again() -> None:
    model = read_architecture(AutoConfig.for_model("llama", **SMALL).to_dict(), "llama")
    how = {"answer": 50, "width": 2, "chunk": 512}
    fresh = answer_bytes(model, prompt=2000, **how)
    assert fresh > kv_bytes(model, 2050, 2)
    kept = answer_bytes(model, prompt=2000, kept=1900, **how)
    assert kept < fresh - kv_bytes(model, 1900, 2)

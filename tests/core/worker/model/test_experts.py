"""Experts of mixtures in 4 bits: which modules they are, and how they are loaded."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, core_model_loading

from core.worker.model.experts import ExpertsParams4bit, experts_of, matrix_names
from core.worker.model.model import load_model
from tests.cases import cases
from tests.core.worker.model.mixtures import IDS, load


@cases("name", ["llama4", "jetmoe"])
def test_experts_that_transformers_does_not_mark_stay_as_they_are(name: str, base_of: Callable[[str], Path]) -> None:
    quantized, plain = load(base_of(name), "qlora"), load(base_of(name), "lora")
    assert not list(experts_of(quantized))
    stacked = {key for key, parameter in plain.named_parameters() if parameter.dim() == 3}
    assert stacked
    assert all(torch.equal(quantized.get_parameter(key), plain.get_parameter(key)) for key in stacked)
    assert torch.isfinite(quantized(input_ids=IDS).logits).all()


@cases(
    ("entry", "kept"),
    [("model.layers.1.mlp.experts", {"gate_up_proj", "down_proj"}), ("layers.1.*.down_proj", {"down_proj"})],
)
def test_experts_of_a_layer_stay_in_16_bit_where_that_is_asked_for(
    entry: str, kept: set[str], base_of: Callable[[str], Path]
) -> None:
    base = base_of("qwen3_moe")
    model = load(base, "qlora", keep_16bit=[entry])
    wanted = load(base, "lora")
    for number, layer in enumerate(model.model.layers):
        for matrix in matrix_names(layer.mlp.experts):
            parameter = getattr(layer.mlp.experts, matrix)
            assert isinstance(parameter, ExpertsParams4bit) is not (number == 1 and matrix in kept)
            if not isinstance(parameter, ExpertsParams4bit):
                assert torch.equal(parameter, getattr(wanted.model.layers[number].mlp.experts, matrix))
    assert torch.isfinite(model(input_ids=IDS).logits).all()


class _Alive:
    """Bytes that were read from files and are still there."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def track(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._gone, size)
        return tensor

    def _gone(self, size: int) -> None:
        self.now -= size


@cases("layers", [2, 6])
@cases("fused", [False, True])
def test_at_most_one_expert_is_in_memory_unquantized(
    layers: int, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        intermediate_size=64,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if fused:
        model.config.save_pretrained(tmp_path)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
        )
    else:
        model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"")
    alive, read = _Alive(), core_model_loading._materialize_copy
    monkeypatch.setattr(
        core_model_loading, "_materialize_copy", lambda *args, **kwargs: alive.track(read(*args, **kwargs))
    )
    during: list[int] = []
    quantize = bnb.functional.quantize_4bit

    def tracked(*args: Any, **kwargs: Any) -> Any:
        during.append(alive.now)
        return quantize(*args, **kwargs)

    monkeypatch.setattr(bnb.functional, "quantize_4bit", tracked)
    load_model(tmp_path, method="qlora", precision="fp32", device="cpu", tokenizer=object())
    # Embeddings, head, norms and routers stay as they are read.
    left = sum(p.numel() * 4 for name, p in model.named_parameters() if "experts" not in name and "_proj" not in name)
    expert = 4 * 64 * 2 * 256
    assert max(during) <= left + (16 * expert if fused else expert)

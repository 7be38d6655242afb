"""Exports as plain transformers and plain PEFT read them."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoTokenizer

from core.worker.export.verify.plain import PlainReader
from tests.cases import cases
from tests.core.export.trained_run import write_adapter
from tests.core.worker.export.bench import IDS, train_adapter
from tests.families.tiny import write_family


def test_4_bit_layers_match_the_training_and_computed_in_fp32_on_any_cpu(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(tiny_model_dir, tmp_path / "adapter")
    # As on processors with AVX512-BF16, where bitsandbytes leaves fp32 by itself.
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    reader = PlainReader(tiny_model_dir, adapter, quantized=True, now=None, keep_16bit=["layers.0.*"])
    layers = {name: layer for name, layer in reader._model.named_modules() if isinstance(layer, bnb.nn.Linear4bit)}
    assert any(".layers.1." in name for name in layers)
    assert not any(".layers.0." in name for name in layers)
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())


@cases("name", ["qwen3_moe", "gemma4_moe"])
@cases("method", ["qlora", "lora"])
def test_adapters_on_experts_answer_as_in_training(tmp_path: Path, name: str, method: str) -> None:
    base = write_family(name, tmp_path / "base", dtype="float32")
    _, wanted = train_adapter(base, tmp_path / "adapter", name=method, target_experts="on")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    reader = PlainReader(base, tmp_path / "adapter", quantized=method == "qlora", now=None)
    with torch.no_grad():
        found = reader._model(IDS).logits
    assert torch.allclose(found, wanted, atol=2e-4), (found - wanted).abs().max()

"""Quantized checkpoints load as the 16-bit models that they stand for, a tensor at a time."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file

from core.models.fingerprint import BaseFingerprint
from core.models.quantized_weights import read_decoded
from core.worker.model.decode.checkpoint import Checkpoint
from core.worker.model.model import load_model
from tests.cases import cases
from tests.packers import FORMATS, quantize_checkpoint
from tests.short_list import long_but

TOKENS = torch.arange(5, 45).view(2, 20)


def load(directory: Path, method: str, precision: str = "bf16") -> Any:
    return load_model(directory, method=method, precision=precision, device="cpu", tokenizer=object()).model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


PAIRS = [
    *(("llama", name) for name in FORMATS if name != "bnb_nf4"),
    ("qwen3_moe", "fp8"),
    ("qwen3_moe", "ct_w4a16"),
    ("gpt_oss", "mxfp4"),
    ("phi3", "fp8"),
    ("olmo3", "awq"),
    ("ministral3", "fp8_whole"),
    ("qwen3_5_moe", "fp8"),
    ("gemma3", "ct_w4a16"),
]
FEW = [
    ("llama", "fp8", "qlora"),
    ("llama", "ct_w4a16_asymmetric", "lora"),
    ("llama", "gptq", "lora"),
    ("llama", "nvfp4", "qlora"),
    ("qwen3_moe", "ct_w4a16", "lora"),
    ("gpt_oss", "mxfp4", "qlora"),
]


@pytest.mark.parametrize(
    ("family", "name", "method"), long_but(FEW, [(*pair, method) for pair in PAIRS for method in ("lora", "qlora")])
)
def test_it_answers_as_the_model_that_it_stands_for(
    tmp_path: Path, family: str, name: str, method: str, base_of: Callable[[str], Path]
) -> None:
    twins = quantize_checkpoint(base_of(family), tmp_path, name)
    model, plain = load(twins.quantized, method), load(twins.plain, method)
    assert torch.equal(logits(model), logits(plain))
    assert model.name_or_path == str(twins.quantized)
    assert model.generation_config.to_dict() == plain.generation_config.to_dict()
    kinds = [type(module) for module in model.modules()]
    assert kinds == [type(module) for module in plain.modules()]
    assert (bnb.nn.Linear4bit in kinds) == (method == "qlora")
    assert hasattr(model.config, "quantization_config") == (method == "qlora")


def test_nf4_is_used_as_it_is_saved_and_decoded_for_other_methods(
    tmp_path: Path, base_of: Callable[[str], Path]
) -> None:
    twins = quantize_checkpoint(base_of("llama"), tmp_path, "bnb_nf4")
    stored = load_file(twins.quantized / "model.safetensors")
    model = load(twins.quantized, "qlora")
    for number, layer in enumerate(model.model.layers):
        saved = stored[f"model.layers.{number}.mlp.up_proj.weight"]
        assert torch.equal(layer.mlp.up_proj.weight.data, saved)
    assert torch.equal(logits(load(twins.quantized, "lora")), logits(load(twins.plain, "lora")))


def test_all_weights_can_be_trained_on_a_quantized_base(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    twins = quantize_checkpoint(base_of("llama"), tmp_path, "fp8")
    assert torch.equal(logits(load(twins.quantized, "full", "fp32")), logits(load(twins.plain, "full", "fp32")))


@cases(
    ("family", "name", "precision", "together"),
    [
        # In fp32 the model keeps none of the decoded tensors, which are 16 bit.
        ("gpt_oss", "mxfp4", "fp32", 1),
        ("qwen3_moe", "ct_w4a16", "fp32", 1),
        ("llama", "fp8", "bf16", 1),
        # Gate and up projection of an expert, a single matrix in transformers.
        ("qwen3_moe", "ct_w4a16", "bf16", 2),
    ],
)
def test_no_more_than_one_layer_is_decoded_at_a_time(
    tmp_path: Path,
    family: str,
    name: str,
    precision: str,
    together: int,
    base_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    twins = quantize_checkpoint(base_of(family), tmp_path, name)
    alive: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
    most = [0]
    read = Checkpoint.read

    def counted(checkpoint: Checkpoint, key: str) -> torch.Tensor:
        found = read(checkpoint, key)
        if key in checkpoint.encoded:
            alive[len(alive) + id(found)] = found
            most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr(Checkpoint, "read", counted)
    load(twins.quantized, "qlora", precision)
    assert most[0] == together
    assert os.environ.get("HF_DEACTIVATE_ASYNC_LOAD") is None


def test_the_fingerprint_is_that_of_the_files(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    twins = quantize_checkpoint(base_of("llama"), tmp_path, "fp8")
    before = BaseFingerprint(twins.quantized).value
    load(twins.quantized, "lora")
    assert BaseFingerprint(twins.quantized).value == before
    assert BaseFingerprint(twins.plain).value != before


def test_a_model_of_several_files_with_scales_in_another(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    from safetensors.torch import save_file

    twins = quantize_checkpoint(base_of("llama"), tmp_path, "fp8")
    whole = twins.quantized / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("_scale_inv")}
    places = {name: f"model-0000{1 + (name in scales)}-of-00002.safetensors" for name in tensors}
    for file in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == file}, twins.quantized / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (twins.quantized / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_decoded(twins.quantized).elements == read_decoded(twins.plain).elements
    assert torch.equal(logits(load(twins.quantized, "lora")), logits(load(twins.plain, "lora")))

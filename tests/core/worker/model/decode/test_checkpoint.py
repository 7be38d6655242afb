"""Decoding, tensor by tensor, against packers written from the formats' specifications."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from core.errors import UserError
from core.models.tensors import read_decoded
from core.worker.model.decode.checkpoint import Checkpoint
from core.worker.model.decode.formats import decode_scaled
from core.worker.model.model import load_model
from tests.cases import cases
from tests.core.models.spoiling import split_weights
from tests.packers import FORMATS, Twins, fp8_blocks, quantize_checkpoint
from tests.short_list import long_but


@cases("name", FORMATS)
def test_every_tensor_is_what_its_parts_stand_for(base_of: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    twins = quantize_checkpoint(base_of("llama"), tmp_path, name)
    checkpoint = Checkpoint(twins.quantized)
    wanted = load_file(twins.plain / "model.safetensors")
    assert set(checkpoint) == set(wanted)
    assert len(checkpoint.encoded) == 14
    for key, tensor in wanted.items():
        found = checkpoint.read(key)
        assert found.dtype == tensor.dtype
        assert (checkpoint.tensor(key).shape, checkpoint.tensor(key).dtype) == (tuple(tensor.shape), "BF16")
        assert torch.equal(found, tensor), (key, (found - tensor).abs().max())


def test_the_experts_of_gpt_oss_are_as_transformers_wants_them(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    twins = quantize_checkpoint(base_of("gpt_oss"), tmp_path, "mxfp4")
    checkpoint = Checkpoint(twins.quantized)
    wanted, stored = (load_file(place / "model.safetensors") for place in (twins.plain, twins.quantized))
    assert set(checkpoint) == set(wanted)
    for key, tensor in wanted.items():
        assert torch.equal(checkpoint.read(key), tensor)
    for key in checkpoint.encoded:
        other = convert_moe_packed_tensors(stored[f"{key}_blocks"], stored[f"{key}_scales"])
        assert torch.equal(checkpoint.read(key), other)


@cases("shape", [(128, 128), (200, 130), (5, 300), (130, 4), (1100, 70)])
def test_blocks_that_do_not_divide_a_shape_are_cut_off(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(1).normal(size=shape)
    parts, meant = fp8_blocks(weight)
    found = decode_scaled(parts["weight"], parts["weight_scale_inv"], (128, 128), torch.float32)
    assert torch.equal(found, torch.from_numpy(meant).float())


def test_scales_of_fused_experts_are_their_own() -> None:
    weights = np.random.default_rng(2).normal(size=(3, 130, 70))
    packed = [fp8_blocks(weight) for weight in weights]
    stored, scales = (torch.stack([parts[end] for parts, _ in packed]) for end in ("weight", "weight_scale_inv"))
    found = decode_scaled(stored, scales, (128, 128), torch.float32)
    assert torch.equal(found, torch.from_numpy(np.stack([meant for _, meant in packed])).float())
    each = decode_scaled(stored, torch.tensor([1.0, 2.0, 4.0]), (130, 70), torch.float32)
    assert torch.equal(each, stored.float() * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1))


def _spoil(twins: Twins, **changes: torch.Tensor | None) -> Path:
    """Change or remove tensors of the first query projection."""
    path = twins.quantized / "model.safetensors"
    tensors = load_file(path)
    for end, tensor in changes.items():
        name = f"model.layers.0.self_attn.q_proj.{end}"
        tensors.pop(name)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path)
    return twins.quantized


@cases(
    ("name", "changes", "says"),
    [
        ("fp8", {"weight_scale_inv": torch.ones(3, 5)}, "which does not fit its scales"),
        ("ct_w4a16", {"weight_scale": None}, "lacks model.layers.0.self_attn.q_proj.weight_scale"),
        ("ct_w4a16", {"weight_scale": torch.ones(128, 7)}, "which does not fit its scales"),
        ("gptq", {"qzeros": None}, "lacks model.layers.0.self_attn.q_proj.qzeros"),
        ("gptq", {"scales": torch.ones(9, 9)}, "which does not fit its scales"),
        ("awq", {"scales": torch.ones(3, 64)}, "which does not fit its scales"),
        ("ct_nvfp4", {"weight_global_scale": None}, "which does not fit its scales"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_reported(
    base_of: Callable[[str], Path], tmp_path: Path, name: str, changes: dict[str, torch.Tensor | None], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        Checkpoint(_spoil(quantize_checkpoint(base_of("llama"), tmp_path, name), **changes))


def test_values_that_make_no_sense_are_reported_when_they_are_read(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    twins = quantize_checkpoint(base_of("llama"), tmp_path / "shape", "ct_w4a16")
    told = Checkpoint(_spoil(twins, weight_shape=torch.tensor([64, 60])))
    with pytest.raises(UserError, match=r"cannot be decoded \(compressed-tensors pack-quantized\): its shape is told"):
        told.read(name)
    twins = quantize_checkpoint(base_of("llama"), tmp_path / "groups", "ct_w4a16_actorder")
    groups = Checkpoint(_spoil(twins, weight_g_idx=torch.full((64,), 99, dtype=torch.int32)))
    with pytest.raises(UserError, match="cannot be decoded"):
        groups.read(name)
    twins = quantize_checkpoint(base_of("llama"), tmp_path / "format", "bnb_int8")
    ordered = Checkpoint(_spoil(twins, weight_format=torch.tensor(1, dtype=torch.uint8)))
    with pytest.raises(UserError, match="in the order of a kernel"):
        ordered.read(name)


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
    ("llama", "fp8", "full"),
    ("llama", "ct_w4a16_asymmetric", "lora"),
    ("llama", "gptq", "lora"),
    ("llama", "nvfp4", "qlora"),
    ("qwen3_moe", "ct_w4a16", "lora"),
    ("gpt_oss", "mxfp4", "qlora"),
]


@pytest.mark.parametrize(
    ("family", "name", "method"),
    long_but(FEW, [("llama", "fp8", "full"), *((*pair, method) for pair in PAIRS for method in ("lora", "qlora"))]),
)
def test_it_answers_as_the_model_that_it_stands_for(
    tmp_path: Path, family: str, name: str, method: str, base_of: Callable[[str], Path]
) -> None:
    twins = quantize_checkpoint(base_of(family), tmp_path, name)
    precision = "fp32" if method == "full" else "bf16"
    model, plain = load(twins.quantized, method, precision), load(twins.plain, method, precision)
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


def test_a_model_of_several_files_with_scales_in_another(tmp_path: Path, base_of: Callable[[str], Path]) -> None:
    twins = quantize_checkpoint(base_of("llama"), tmp_path, "fp8")
    split_weights(twins.quantized)
    places = json.loads((twins.quantized / "model.safetensors.index.json").read_text())["weight_map"]
    assert any(place != places[f"{name}_scale_inv"] for name, place in places.items() if f"{name}_scale_inv" in places)
    assert read_decoded(twins.quantized).elements == read_decoded(twins.plain).elements
    assert torch.equal(logits(load(twins.quantized, "lora")), logits(load(twins.plain, "lora")))

"""Exports of runs on quantized bases, verified like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from core.errors import UserError
from core.export.plan import plan_export
from core.export.request import ExportRequest
from core.models.tensors import read_weights
from core.worker.export.export import Export
from core.worker.export.model_directory import way_to_merge
from core.worker.model.adapters import WeightFiles
from core.worker.model.model import load_model
from tests.cases import cases
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.core.worker.export.bench import logits, train_adapter
from tests.core.worker.export.test_merge import merge
from tests.families.tiny import write_family
from tests.packers import quantize_checkpoint
from tests.progress import quiet
from tests.tiny_model import write_tiny_model


@cases(
    ("family", "name", "method", "way"),
    [
        ("llama", "fp8", {}, "base"),
        ("llama", "ct_w4a16", {"name": "qlora"}, "quantized"),
        ("llama", "bnb_nf4", {"name": "qlora"}, "quantized"),
        ("llama", "bnb_nf4", {}, "base"),
        ("llama", "gptq_actorder", {"dora": True}, "base"),
        ("gpt_oss", "mxfp4", {"target_modules": ["q_proj", "o_proj"]}, "base"),
        ("gpt_oss", "mxfp4", {"name": "qlora", "target_modules": ["q_proj"]}, "quantized"),
        ("qwen3_moe", "fp8", {"target_modules": ["q_proj", "o_proj"]}, "base"),
        ("qwen3_moe", "ct_w4a16", {"name": "qlora", "target_modules": ["q_proj"]}, "quantized"),
    ],
)
def test_an_adapter_is_merged_into_decoded_weights(
    tmp_path: Path, family: str, name: str, method: dict[str, Any], way: str
) -> None:
    twins = quantize_checkpoint(write_family(family, tmp_path / "source"), tmp_path, name)
    trained, wanted = train_adapter(twins.quantized, tmp_path / "adapter", **method)
    assert way_to_merge(twins.quantized, trained, "auto") == way
    merged = merge(twins.quantized, trained, tmp_path / "merged", rounded=way == "quantized")
    # Saved in NF4, it was trained in the arithmetic that its configuration names.
    near = 2e-4 if wanted.dtype == torch.float32 else 0.05
    assert torch.allclose(logits(merged), wanted.float(), atol=near), (logits(merged) - wanted).abs().max()
    # The files hold a 16-bit model's tensors, and say so.
    assert set(read_weights(tmp_path / "merged")) == set(read_weights(twins.plain))
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_loftq_starts_from_the_decoded_weights(tmp_path: Path) -> None:
    twins = quantize_checkpoint(write_family("llama", tmp_path / "source"), tmp_path, "fp8")
    files = WeightFiles(twins.quantized, "model")
    wanted = load_file(twins.plain / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(files.read(name, (64, 128)), wanted[name])
    begun = [
        train_adapter(base, tmp_path / "adapters" / base.name, name="qlora", init="loftq")[1]
        for base in (twins.quantized, twins.plain)
    ]
    assert torch.equal(begun[0], begun[1])
    saved = quantize_checkpoint(tmp_path / "source", tmp_path / "nf4", "bnb_nf4")
    with pytest.raises(UserError, match=r"saved quantized \(bitsandbytes NF4\), and LoftQ needs"):
        WeightFiles(saved.quantized, "model")


@pytest.mark.parametrize(
    ("name", "method", "kind"),
    [pytest.param("fp8", "lora", "adapter", marks=pytest.mark.long), ("ct_w4a16", "qlora", "merged")],
)
def test_the_export_agrees_with_the_trained_model(
    tmp_path: Path, name: str, method: Literal["lora", "qlora"], kind: Literal["adapter", "merged"]
) -> None:
    twins = quantize_checkpoint(write_tiny_model(tmp_path / "source"), tmp_path, name)
    run = make_trained_run(twins.quantized, write_rows(tmp_path / "rows.jsonl"), method=method, shapes=twins.plain)
    result = Export(plan_export(ExportRequest(run.path, kind, out=tmp_path / "out")), quiet).make()
    assert result.agreement is not None
    assert result.agreement.mean_kl is not None
    assert result.agreement.mean_kl < 1e-3
    if kind == "merged":
        read = load_model(tmp_path / "out", method="lora", precision="fp32", device="cpu", tokenizer=object())
        assert not hasattr(read.model.config, "quantization_config")


@pytest.mark.long
@pytest.mark.usefixtures("converter")
def test_an_adapter_of_a_quantized_base_becomes_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp_py_sync")
    twins = quantize_checkpoint(write_tiny_model(tmp_path / "source"), tmp_path, "fp8")
    run = make_trained_run(twins.quantized, write_rows(tmp_path / "rows.jsonl"), shapes=twins.plain)
    result = Export(plan_export(ExportRequest(run.path, "gguf", adapter_only=True, out=tmp_path / "out")), quiet).make()
    assert result.agreement is not None
    assert result.agreement.failures(None) == []
    assert not {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}

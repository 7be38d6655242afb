"""Optional kernels of recurrent layers: named where a model would use them and they are not there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.models.architecture.load import load_architecture
from core.models.installed import KERNELS, missing_kernels, tell_missing
from tests.cases import cases
from tests.measured_here import measured_here

__all__ = ["measured_here"]

DELTA = ("fla", "causal_conv1d")
CASES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text"}}, DELTA),
    ({"model_type": "qwen3_5_moe_text", "layer_types": ["linear_attention", "full_attention"]}, DELTA),
    ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, ("causal_conv1d",)),
    ({"model_type": "lfm2", "layer_types": ["full_attention"]}, ()),
    ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]}, ("causal_conv1d", "mamba_ssm")),
    ({"model_type": "granitemoehybrid", "layer_types": ["attention", "attention"]}, ()),
    ({"model_type": "nemotron_h", "layers_block_type": ["mamba", "mlp"]}, ("causal_conv1d", "mamba_ssm")),
    ({"model_type": "falcon_h1"}, ("causal_conv1d", "mamba_ssm")),
    ({"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]}, ()),
    ({"model_type": "llama"}, ()),
    ({"model_type": "../../etc"}, ()),
    ({"model_type": "no_such_family"}, ()),
    ({}, ()),
]


@pytest.fixture
def none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in KERNELS else find(name))


@cases(("config", "expected"), CASES)
@pytest.mark.usefixtures("none_installed")
def test_kernels_that_a_model_would_use(config: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert tuple(kernel.package for kernel in missing_kernels(config)) == expected


def test_installed_kernels_are_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    there = find("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there if name in KERNELS else find(name))
    assert missing_kernels({"model_type": "qwen3_5"}) == ()


def test_the_sentence_names_them() -> None:
    sentence = tell_missing((KERNELS["fla"], KERNELS["causal_conv1d"]))
    assert sentence.startswith("flash-linear-attention and causal-conv1d are not installed, so PyTorch computes")
    assert tell_missing((KERNELS["mamba_ssm"],)).startswith("mamba-ssm is not installed")
    assert tell_missing(()) == ""


@pytest.mark.long
@pytest.mark.usefixtures("none_installed")
def test_the_plan_for_a_card_names_them(tmp_path: Path) -> None:
    """The shapes are Llama's: only the family counts."""
    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    listed = {"layer_types": ["conv", "full_attention"], "vocab_size": 320, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lfm2", **shapes, **listed}))
    model = load_architecture(tmp_path)
    config = Config.model_validate({"data": {"train": "x"}})
    notes = make_plan(model, config, Machine("cuda")).notes
    assert any(
        note.startswith("causal-conv1d is not installed") and "pip install causal-conv1d" in note for note in notes
    )
    assert not any("causal-conv1d" in note for note in make_plan(model, config, Machine("cpu")).notes)

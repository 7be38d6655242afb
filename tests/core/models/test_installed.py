"""The installed transformers and its known architectures, without importing it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.models import installed
from core.models.architecture.load import load_architecture
from core.models.installed import (
    KERNELS,
    check_known,
    known_model_types,
    missing_kernels,
    newer_version,
    tell_missing,
    transformers_version,
)
from core.models.sandboxed import check_base, inspect_model
from tests.cases import cases
from tests.core.models.spoiling import copy_model, edit_json
from tests.measured_here import measured_here


@pytest.mark.long
@pytest.mark.slow
def test_the_known_architectures_are_those_of_transformers() -> None:
    """As transformers itself says, in another process: it must not be imported here."""
    code = "from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as names; print(*names)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert known_model_types() == set(said)


def test_it_is_not_imported() -> None:
    code = "import sys; from core.models.installed import *; known_model_types(); print('transformers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


@cases(
    ("said", "newer"),
    [
        ("99.1.0", "99.1.0"),
        ("99.1.0.dev0", "99.1.0"),
        ("4.51.0", None),
        (transformers_version(), None),
        ("next", None),
        ("9" * 1000, None),
        (99, None),
        (None, None),
    ],
)
def test_newer_versions(said: object, newer: str | None) -> None:
    assert newer_version({"transformers_version": said}) == newer


@pytest.mark.parametrize("part", ["whole", "text"])
def test_a_model_that_is_newer_names_the_version_that_knows_it(part: str) -> None:
    config = {"model_type": "newest" if part == "whole" else "gemma3", "transformers_version": "99.1.0"}
    if part == "text":
        config |= {"text_config": {"model_type": "newest"}}  # type: ignore[dict-item]
    with pytest.raises(UserError) as refusal:
        check_known(config, Path("model"))
    assert refusal.value.message == (
        f"model is of the architecture newest, which transformers {transformers_version()} does not know; it was saved "
        "with transformers 99.1.0, which does."
    )
    assert refusal.value.hint == "Upgrade transformers: pip install --upgrade 'transformers>=99.1.0'."


def test_the_app_tells_it_before_a_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    edit_json(
        model / "config.json", model_type="newest", architectures=["NewestForCausalLM"], transformers_version="99.1.0"
    )
    with pytest.raises(UserError, match=r"saved with transformers 99\.1\.0, which does"):
        check_base(str(model))
    facts = inspect_model(model)
    assert "saved with transformers 99.1.0, which does" in facts.flaw
    assert facts.family == "newest"


def test_without_transformers_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "known_model_types", frozenset)
    check_known({"model_type": "newest"}, Path("model"))


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

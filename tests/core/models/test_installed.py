"""The installed transformers and its known architectures, without importing it."""

from __future__ import annotations

import importlib.util
import json
import re
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
from core.models.architecture.measuring import load_architecture
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
from tests.cases import cases, tables
from tests.core.models.spoiling import copy_model, edit_json
from tests.measured_here import measured_here


@pytest.mark.long
@pytest.mark.slow
def test_the_known_architectures_are_those_of_transformers() -> None:
    """As transformers itself says, in another process: it must not be imported here."""
    code = "from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as names; print(*names)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert known_model_types() == set(said)


@cases("said", ["4.51.0", transformers_version(), "next", "9" * 1000, 99, None])
def test_other_versions_are_not_newer(said: object) -> None:
    assert newer_version({"transformers_version": "99.1.0.dev0"}) == "99.1.0"
    assert newer_version({"transformers_version": said}) is None


def test_a_model_that_is_newer_names_the_version_that_knows_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    says = (
        f"is of the architecture newest, which transformers {transformers_version()} does not know; it was saved with "
        "transformers 99.1.0, which does."
    )
    newest = {"model_type": "newest", "transformers_version": "99.1.0"}
    for config in (newest, {**newest, "model_type": "gemma3", "text_config": {"model_type": "newest"}}):
        with pytest.raises(UserError) as refusal:
            check_known(config, Path("model"))
        assert refusal.value.message == f"model {says}"
        assert refusal.value.hint == "Upgrade transformers: pip install --upgrade 'transformers>=99.1.0'."
    # The app tells it before a run.
    model = copy_model(tiny_model_dir, tmp_path / "model")
    edit_json(model / "config.json", architectures=["NewestForCausalLM"], **newest)
    with pytest.raises(UserError, match=re.escape(says)):
        check_base(str(model))
    assert says in inspect_model(model).flaw


def test_without_transformers_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "known_model_types", frozenset)
    check_known({"model_type": "newest"}, Path("model"))


__all__ = ["measured_here"]


@pytest.fixture
def none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in KERNELS else find(name))


@cases(("config", "expected"), tables(__file__)["kernels"])
@pytest.mark.usefixtures("none_installed")
def test_kernels_that_a_model_would_use(config: dict[str, Any], expected: list[str]) -> None:
    missing = missing_kernels(config)
    assert [kernel.package for kernel in missing] == expected
    sentence = tell_missing(missing)
    assert all(kernel.distribution in sentence for kernel in missing)
    assert bool(sentence) == bool(expected)


def test_installed_kernels_are_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    there = find("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there if name in KERNELS else find(name))
    assert missing_kernels({"model_type": "qwen3_5"}) == ()


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

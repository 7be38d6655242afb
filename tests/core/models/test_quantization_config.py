"""Quantization of checkpoints by their descriptions: names and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.models.inspection import inspect_model
from core.models.quantization_config import check_quantization, find_counterpart, read_quantization, saved_quantization
from tests.cases import cases
from tests.core.models.spoiling import copy_model, edit_json

TABLES = yaml.safe_load(Path(__file__).with_name("quantizations.yaml").read_text(encoding="utf-8"))
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@cases(("said", "name"), TABLES["named"])
def test_how_weights_were_saved_is_told(tmp_path: Path, said: Any, name: str | None) -> None:
    assert saved_quantization(tmp_path, {"quantization_config": said}) == name
    assert saved_quantization(tmp_path, {"text_config": {"quantization_config": said}}) == name
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    assert saved_quantization(tmp_path) == name


def test_the_description_of_the_model_optimizer_counts_where_config_json_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    written = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(written))
    assert saved_quantization(tmp_path) == "ModelOpt NVFP4"
    assert saved_quantization(tmp_path, {"quantization_config": {"quant_method": "fp8"}}) == "FP8"
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"kv_cache_quant_algo": "FP8"}}')
    assert saved_quantization(tmp_path) is None


@cases(("said", "name", "why"), TABLES["refused"])
def test_what_cannot_be_decoded_is_named(tmp_path: Path, said: dict[str, Any], name: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        check_quantization(tmp_path, {"quantization_config": said})
    assert caught.value.message == f"{tmp_path} was saved quantized ({name}), which cannot be trained here: {why}."
    assert caught.value.hint.startswith("Take the model as it was before it was quantized; method.name = qlora makes")


def test_a_model_that_cannot_be_decoded_is_listed_with_its_flaw(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "Tiny-HQQ")
    edit_json(model / "config.json", quantization_config={"quant_method": "hqq"})
    facts = inspect_model(model)
    assert (facts.quantization, facts.dtype) == ("HQQ", "HQQ")
    assert "saved quantized (HQQ), which cannot be trained here" in facts.flaw
    assert "which may be named Tiny;" in facts.hint
    assert facts.parameters == inspect_model(tiny_model_dir).parameters


def test_only_nf4_is_used_as_it_is_saved_and_only_by_qlora(tmp_path: Path) -> None:
    nf4 = read_quantization(tmp_path, {"quantization_config": NF4})
    fp4 = read_quantization(tmp_path, {"quantization_config": {**NF4, "bnb_4bit_quant_type": "fp4"}})
    assert nf4 is not None
    assert fp4 is not None
    assert [nf4.is_used_as_saved(method) for method in ("qlora", "lora", "full")] == [True, False, False]
    assert not fp4.is_used_as_saved("qlora")


@cases(("card", "found"), TABLES["cards"])
def test_the_card_names_the_model_that_it_was_made_from(tmp_path: Path, card: str, found: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "README.md").write_bytes(card.encode())
    assert find_counterpart(directory) == found


@cases(("name", "shorter"), TABLES["suffixes"].items())
def test_else_the_name_without_what_was_put_behind_it_is_a_guess(tmp_path: Path, name: str, shorter: str) -> None:
    directory, other = tmp_path / name, tmp_path / "other"
    snapshot = tmp_path / "hub" / f"models--Some--{name}" / "snapshots" / "abc"
    for place in (directory, other, snapshot):
        place.mkdir(parents=True)
    (other / "config.json").write_text(json.dumps({"_name_or_path": f"Some/{name}"}))
    guess = "the model as it was before, which may be named "
    assert find_counterpart(directory) == (guess + shorter if shorter else "")
    assert find_counterpart(snapshot) == find_counterpart(other) == (f"{guess}Some/{shorter}" if shorter else "")

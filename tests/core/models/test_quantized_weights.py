"""Weights of quantized checkpoints by their headers: decoded shapes, and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from core.errors import UserError
from core.models.architecture.measuring import load_architecture
from core.models.check import check_model_directory
from core.models.description import check_quantization, find_counterpart, read_quantization, saved_quantization
from core.models.inspection import inspect_model
from core.models.tensors import read_decoded
from core.text import one_line
from tests.cases import cases
from tests.core.models.spoiling import copy_model, edit_json
from tests.families.tiny import write_family
from tests.packers import FORMATS, quantize_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("llama", tmp_path_factory.mktemp("llama"))


@cases("name", FORMATS)
def test_headers_tell_what_a_checkpoint_decodes_to(llama: Path, tmp_path: Path, name: str) -> None:
    twins = quantize_checkpoint(llama, tmp_path, name)
    found, plain = read_decoded(twins.quantized), read_decoded(twins.plain)
    assert found.tensors == plain.tensors
    assert found.elements == plain.elements
    assert not plain.encoded
    facts, plain_facts = inspect_model(twins.quantized), inspect_model(twins.plain)
    assert facts.flaw == ""
    shown = one_line(FORMATS[name].name.removeprefix("compressed-tensors "), 20)
    assert (facts.quantization, facts.dtype) == (FORMATS[name].name, shown)
    assert facts.parameters == plain_facts.parameters == plain.elements
    assert (facts.bytes or 0) < (plain_facts.bytes or 0)
    architecture, wanted = load_architecture(twins.quantized), load_architecture(twins.plain)
    assert architecture.checkpoint is not None
    assert architecture.checkpoint.dtype == FORMATS[name].name
    assert architecture.parameters == wanted.parameters
    assert architecture.other == wanted.other


@cases(("family", "name"), [("qwen3_moe", "fp8"), ("gpt_oss", "mxfp4")])
def test_experts_are_counted_decoded(tmp_path: Path, family: str, name: str) -> None:
    twins = quantize_checkpoint(write_family(family, tmp_path / "source"), tmp_path, name)
    assert read_decoded(twins.quantized).tensors == read_decoded(twins.plain).tensors
    assert inspect_model(twins.quantized).parameters == inspect_model(twins.plain).parameters


def test_shapes_of_quantized_weights_are_compared_with_config_json(llama: Path, tmp_path: Path) -> None:
    twins = quantize_checkpoint(llama, tmp_path, "ct_w4a16")
    check_model_directory(twins.quantized)
    edit_json(twins.quantized / "config.json", intermediate_size=256)
    with pytest.raises(UserError, match=r"mlp\.gate_proj\.weight is 128 x 64, and should be 256 x 64"):
        check_model_directory(twins.quantized)
    assert "do not match config.json" in inspect_model(twins.quantized).flaw


def test_bits_come_from_shapes_where_the_groups_of_a_configuration_differ(llama: Path, tmp_path: Path) -> None:
    twins = quantize_checkpoint(llama, tmp_path, "ct_w4a16")
    said = json.loads((twins.quantized / "config.json").read_text())["quantization_config"]

    def describe(group_size: int) -> None:
        eight = {"targets": ["re:.*experts.*"], "weights": {"num_bits": 8, "type": "int", "group_size": group_size}}
        groups = {**said["config_groups"], "group_1": eight}
        edit_json(twins.quantized / "config.json", quantization_config={**said, "config_groups": groups})

    describe(128)
    assert read_decoded(twins.quantized).tensors == read_decoded(twins.plain).tensors
    describe(16)
    with pytest.raises(UserError, match="which does not fit its scales"):
        read_decoded(twins.quantized)


def test_modules_of_gptq_may_have_bits_of_their_own(llama: Path, tmp_path: Path) -> None:
    twins = quantize_checkpoint(llama, tmp_path, "gptq_actorder")
    said = json.loads((twins.quantized / "config.json").read_text())["quantization_config"]
    edit_json(twins.quantized / "config.json", quantization_config={**said, "bits": 4})
    assert read_decoded(twins.quantized).tensors == read_decoded(twins.plain).tensors


def test_scales_of_activations_are_no_weights(llama: Path, tmp_path: Path) -> None:
    twins = quantize_checkpoint(llama, tmp_path, "fp8")
    path = twins.quantized / "model.safetensors"
    tensors = load_file(path)
    one = tensors["model.layers.0.self_attn.q_proj.weight_scale_inv"][:1, :1].clone()
    for end in ("self_attn.k_scale", "self_attn.v_scale", "mlp.up_proj.input_scale", "mlp.up_proj.activation_scale"):
        tensors[f"model.layers.0.{end}"] = one.clone()
    save_file(tensors, path)
    assert read_decoded(twins.quantized).tensors == read_decoded(twins.plain).tensors


@cases("state", [b"{", b"[]", b'{"shape": [0, 5]}', b'{"shape": "x"}'])
def test_a_damaged_state_of_bitsandbytes_is_reported(llama: Path, tmp_path: Path, state: bytes) -> None:
    import torch

    twins = quantize_checkpoint(llama, tmp_path, "bnb_nf4")
    path = twins.quantized / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4"
    tensors[name] = torch.tensor(list(state), dtype=torch.uint8)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"quant_state\.bitsandbytes__nf4 makes no sense"):
        read_decoded(twins.quantized)


TABLES = yaml.safe_load(Path(__file__).with_name("quantizations.yaml").read_text(encoding="utf-8"))
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@cases(("said", "name"), TABLES["named"])
def test_how_weights_were_saved_is_reported(tmp_path: Path, said: Any, name: str | None) -> None:
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

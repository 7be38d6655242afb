"""Adapters on the text part of a composite model: saved for the whole model, merged into it, its towers untouched."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from core.errors import UserError
from core.models.check import check_adapter
from core.models.description import split_names
from core.runs.catalog.trained import python_code
from core.worker.checkpoint.checkpoint import save_adapter
from core.worker.export.gguf.adapter import read_pairs
from core.worker.export.merge import merge_weights
from core.worker.export.model_directory import write_configs
from core.worker.export.verify.plain import PlainReader
from core.worker.model.adapters import adapter_state, add_adapter, attach_adapters, load_adapter, load_state
from core.worker.model.model import load_model
from tests.cases import cases
from tests.core.worker.export.bench import IDS, logits, make_config, train_adapter
from tests.core.worker.export.test_merge import TALK
from tests.families.tiny import FAMILIES, write_family
from tests.progress import quiet
from tests.short_list import long_but

COMPOSITE = [name for name, family in FAMILIES.items() if family.sees]
#: Families of 'make test'.
FIRST = ("qwen3_5", "gemma3", "mistral3")
Bases = Callable[[str], Path]
METHODS: list[dict[str, Any]] = [
    {},
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": ["layers.1.*_proj"]},
    {"dora": True},
    {"init": "pissa"},
    {"target_modules": ["lm_head", "up_proj"]},
]
#: The names that adapters on a whole Gemma 3 had when towers were loaded and adapted as well.
TOWER = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Tiny models of composite families, in bf16 as published ones are, each made when it is asked for."""
    directory = tmp_path_factory.mktemp("composite")
    return functools.cache(lambda name: write_family(name, directory / name))


def whole(directory: Path) -> Any:
    model: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def fresh(base: Path) -> Any:
    return load_model(base, method="lora", precision="fp32", device="cpu", tokenizer=object()).model


@pytest.mark.parametrize(
    ("name", "method"),
    long_but(
        [*(("gemma3", method) for method in METHODS), ("qwen3_5", {}), ("mistral3", {})],
        itertools.product(COMPOSITE, METHODS),
    ),
)
def test_a_saved_adapter_fits_the_whole_model(bases: Bases, name: str, method: dict[str, Any], tmp_path: Path) -> None:
    base = bases(name)
    if "moe" in name and method.get("init") == "pissa":
        method = {**method, "target_modules": ["q_proj", "v_proj"]}
    _, wanted = train_adapter(base, tmp_path / "adapter", **method)
    model = whole(base)
    assert (logits(model) - wanted).abs().max() > 0.05
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), wanted, rtol=0, atol=1e-5)
    assert not [key for key, _ in adapted.named_parameters() if "lora_" in key and ("vision" in key or "visual" in key)]
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        assert all("language_model" in key or "lm_head" in key for key in file.keys())  # noqa: SIM118
    check_adapter(tmp_path / "adapter", base)


@pytest.mark.parametrize("name", long_but(FIRST, COMPOSITE))
def test_a_saved_adapter_is_read_alone_beside_another_and_on_resume(bases: Bases, name: str, tmp_path: Path) -> None:
    base = bases(name)
    _, wanted = train_adapter(base, tmp_path / "adapter")
    first = load_adapter(fresh(base), tmp_path / "adapter", trainable=False)
    torch.testing.assert_close(logits(first), wanted, rtol=0, atol=0)
    second = add_adapter(first, tmp_path / "adapter", "other")
    second.set_adapter("other")
    torch.testing.assert_close(logits(second), wanted, rtol=0, atol=0)
    resumed = attach_adapters(fresh(base), make_config(base).method, seed=7)
    assert load_state(resumed, load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == []
    torch.testing.assert_close(logits(resumed), wanted, rtol=0, atol=0)
    state, saved = adapter_state(second)
    assert set(state) == set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert (
        saved.target_modules == json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    )


@cases("names", ["whole", "text"])
def test_adapters_of_earlier_versions_are_read(bases: Bases, names: str, tmp_path: Path) -> None:
    """With names of the whole model and factors on its towers, as of Gemma 3; with names of the text part, as of
    Qwen3.5."""
    base, adapter = bases("gemma3"), tmp_path / "adapter"
    _, wanted = train_adapter(base, adapter)
    path, config = adapter / "adapter_model.safetensors", json.loads((adapter / "adapter_config.json").read_text())
    state = load_file(path)
    config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "out_proj"]
    if names == "whole":
        state |= {f"{TOWER}.lora_A.weight": torch.ones(4, 64), f"{TOWER}.lora_B.weight": torch.zeros(64, 4)}
    else:
        state = {key.replace("model.language_model.", "model."): value for key, value in state.items()}
    save_file(state, path, metadata={"format": "pt"})
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    check_adapter(adapter, base)
    torch.testing.assert_close(logits(load_adapter(fresh(base), adapter, trainable=False)), wanted, rtol=0, atol=0)
    resumed = attach_adapters(fresh(base), make_config(base).method, seed=7)
    assert load_state(resumed, state) == []
    torch.testing.assert_close(logits(resumed), wanted, rtol=0, atol=0)


def test_an_adapter_that_is_not_whole_is_refused(bases: Bases, tmp_path: Path) -> None:
    train_adapter(bases("mistral3"), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    lost = next(key for key in state if "layers.1.mlp.up_proj.lora_B" in key)
    rest = {key: value for key, value in state.items() if key != lost}
    save_file(rest, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks factors that its configuration asks for"):
        load_adapter(fresh(bases("mistral3")), tmp_path / "adapter", trainable=False)
    strange = lost.replace("up_proj", "strange_proj")
    save_file(state | {strange: state[lost].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="has factors that it has no place for"):
        load_adapter(fresh(bases("mistral3")), tmp_path / "adapter", trainable=False)


@pytest.mark.parametrize(
    ("name", "quant"),
    long_but([("gemma3", "BF16"), *((name, "F32") for name in FIRST)], itertools.product(COMPOSITE, ["BF16", "F32"])),
)
def test_a_merged_model_is_complete_and_its_towers_are_unchanged(
    bases: Bases, name: str, quant: Any, tmp_path: Path
) -> None:
    base = bases(name)
    trained, wanted = train_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "o_proj", "out_proj"])
    out = tmp_path / "merged"
    out.mkdir()
    untied = merge_weights(base, trained, out, quant, rounded=False, progress=quiet)
    write_configs(base, out, quant, TALK, untied=untied)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert set(before) == set(after)
    others = split_names(before).others
    assert others
    for key in others:
        assert before[key].dtype == after[key].dtype
        assert torch.equal(before[key], after[key])
    if quant == "F32":
        model, loading = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
        assert not loading["missing_keys"]
        torch.testing.assert_close(logits(model.eval()), wanted, rtol=0, atol=2e-5)
        torch.testing.assert_close(logits(fresh(out)), wanted, rtol=0, atol=2e-5)


def test_plain_readers_take_the_whole_model(bases: Bases, tmp_path: Path) -> None:
    _, wanted = train_adapter(bases("mistral3"), tmp_path / "adapter")
    for path in bases("mistral3").glob("*token*"):
        (tmp_path / "adapter" / path.name).write_bytes(path.read_bytes())
    reader = PlainReader(bases("mistral3"), tmp_path / "adapter", quantized=False, now=None)
    found = torch.stack([torch.from_numpy(row) for row in reader.logits(IDS[0].tolist(), range(24))])
    torch.testing.assert_close(found, wanted[0], rtol=0, atol=1e-5)
    assert "AutoModelForImageTextToText.from_pretrained(base)" in python_code(
        _with_base(tmp_path / "adapter", bases("mistral3")), is_model=False
    )


def _with_base(adapter: Path, base: Path) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    return adapter


def test_an_adapter_in_a_gguf_file_has_the_names_of_the_text_part(bases: Bases, tmp_path: Path) -> None:
    train_adapter(bases("gemma3"), tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    _, pairs = read_pairs(tmp_path / "adapter" / "adapter_model.safetensors", config)
    assert sorted(pairs) == [f"model.layers.{number}.self_attn.q_proj" for number in range(2)]


def test_loftq_reads_the_weights_of_the_text_part(bases: Bases, tmp_path: Path) -> None:
    method = {"name": "qlora", "init": "loftq", "target_modules": ["q_proj"]}
    config = make_config(bases("mistral3"), **method)
    loaded = load_model(bases("mistral3"), method="qlora", precision="fp32", device="cpu")
    model = attach_adapters(loaded.model, config.method, seed=0, base=bases("mistral3"))
    save_adapter(model, tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(bool(value.abs().sum() > 0) for value in state.values())

"""Weights that a model lacks, has too many of, or has in another shape: named in the error, in any storage format."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import UserError
from core.models.check import check_model_directory
from core.worker.model.model import load_model
from core.worker.model.support import check_base
from tests.cases import cases
from tests.core.models.spoiling import copy_model, edit_json, split_weights
from tests.short_list import long_but

State = dict[str, torch.Tensor]
#: Shapes compared with headers, a variant of Llama, and experts.
FAMILIES = ("llama", "arcee", "qwen3_moe")


def spoil(model: Path, change: Callable[[State], object]) -> Path:
    """Change the weights of a model."""
    state = load_file(model / "model.safetensors")
    change(state)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    return model


def load(model: Path, method: str = "lora") -> Any:
    """A run's steps with a base, up to the model in memory."""
    check_base(check_model_directory(model))
    return load_model(model, method=method, precision="fp32", device="cpu").model


@pytest.fixture
def copy(tmp_path: Path, base_of: Callable[[str], Path]) -> Callable[[str], Path]:
    """Makes a copy of a model, each in a place of its own."""
    numbers = itertools.count()
    return lambda family: copy_model(base_of(family), tmp_path / f"{family}-{next(numbers)}")


@cases("family", FAMILIES)
@cases("method", ["lora", "qlora"])
def test_whole_models_are_loaded_in_one_file_and_in_shards(
    copy: Callable[[str], Path], family: str, method: str
) -> None:
    model = copy(family)
    assert load(model, method) is not None
    split_weights(model)
    assert load(model, method) is not None


NORM = "model.layers.1.post_attention_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def _drop(*names: str) -> Callable[[State], object]:
    return lambda state: [state.pop(name) for name in names]


def _put(name: str, *shape: int) -> Callable[[State], object]:
    return lambda state: state.update({name: torch.ones(shape, dtype=torch.bfloat16)})


@pytest.mark.parametrize(
    ("method", "shards"),
    long_but([("lora", False), ("qlora", True)], itertools.product(["lora", "qlora"], [False, True])),
)
@cases(
    ("family", "change", "says"),
    [
        ("llama", _drop(NORM), [NORM]),
        ("llama", _drop(NORM, "model.norm.weight"), [NORM, "model.norm.weight"]),
        ("arcee", _drop(UP), [UP]),
        ("arcee", _put(UP, 128, 32), [UP, "128 x 32 in place of 128 x 64"]),
        ("llama", _put(NORM, 32), [NORM, "32 in place of 64"]),
        ("llama", _put("model.layers.1.self_attn.q_proj.bias", 64), ["model.layers.1.self_attn.q_proj.bias"]),
        ("llama", _put("model.layers.1.mlp.extra.weight", 4, 4), ["does not take: model.layers.1.mlp.extra.weight"]),
        ("arcee", _put("model.layers.2.mlp.up_proj.weight", 128, 64), ["model.layers.2.mlp.up_proj.weight"]),
        ("llama", _put("v_head.weight", 1, 64), ["v_head.weight"]),
        ("qwen3_moe", _drop("model.layers.1.mlp.experts.1.up_proj.weight"), ["experts.1.up_proj.weight"]),
        (
            "qwen3_moe",
            _drop("model.layers.1.mlp.experts.7.up_proj.weight"),
            ["model.layers.1.mlp.experts.gate_up_proj"],
        ),
        ("qwen3_moe", _drop("model.layers.1.mlp.experts.7.down_proj.weight"), ["model.layers.1.mlp.experts.down_proj"]),
    ],
)
def test_missing_mismatched_and_unexpected_weights_are_named(
    copy: Callable[[str], Path],
    family: str,
    change: Callable[[State], object],
    says: list[str],
    method: str,
    shards: bool,
) -> None:
    model = spoil(copy(family), change)
    if shards:
        split_weights(model)
    with pytest.raises(UserError) as caught:
        load(model, method)
    assert all(part in caught.value.message for part in says), caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@cases(
    ("config", "change"),
    [
        ({}, _put("model.layers.0.self_attn.rotary_emb.inv_freq", 8)),
        ({}, _put("model.layers.0.attn.bias", 1, 1, 16, 16)),
        ({}, _put("model.layers.0.attn.masked_bias")),
        ({}, _put("mtp.layers.0.mlp.up_proj.weight", 4, 4)),
        ({"vision_config": {"hidden_size": 4}}, _put("vision_tower.layers.0.fc1.weight", 4, 4)),
        ({"num_nextn_predict_layers": 1}, _put("model.layers.2.mlp.up_proj.weight", 128, 64)),
    ],
)
def test_tables_and_parts_that_write_no_text_may_be_there(
    copy: Callable[[str], Path], config: dict[str, Any], change: Callable[[State], object]
) -> None:
    model = spoil(copy("arcee"), change)
    edit_json(model / "config.json", **config)
    assert load(model) is not None
    edit_json(model / "config.json", **dict.fromkeys(config))
    if config:
        with pytest.raises(UserError, match="does not take"):
            load(model)


def test_a_head_that_is_tied_may_be_missing_or_there(copy: Callable[[str], Path]) -> None:
    model = copy("arcee")
    edit_json(model / "config.json", tie_word_embeddings=True)
    spoil(model, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    assert load(model) is not None
    spoil(model, _drop("lm_head.weight"))
    assert load(model) is not None


@cases("size", ["intermediate_size", "vocab_size", "num_key_value_heads"])
def test_a_model_that_is_described_as_immense_is_refused_before_anything_is_made(
    copy: Callable[[str], Path], size: str
) -> None:
    model = copy("arcee")
    edit_json(model / "config.json", **{size: 1 << 30})
    with pytest.raises(UserError) as caught:
        check_base(model)
    assert str(model) in caught.value.message


@cases(
    "config",
    [
        {"num_attention_heads": 0},
        {"hidden_act": "nonsense"},
        {"rope_parameters": "nonsense"},
        {"_attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "nonsense"},
        {"layer_types": ["nonsense"] * 2},
        {"rms_norm_eps": "nonsense"},
    ],
)
@cases("family", ["llama", "arcee"])
def test_a_configuration_of_nonsense_is_a_sentence(
    copy: Callable[[str], Path], family: str, config: dict[str, Any]
) -> None:
    model = copy(family)
    edit_json(model / "config.json", **config)
    try:
        load(model)  # some are read generously
    except UserError as error:
        assert "\n" not in error.message  # noqa: PT017 - whether it is raised is left to the library

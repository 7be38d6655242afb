"""Model families: ``config.json`` to exact parameter counts and PEFT's module names, and refusals."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from core.errors import UserError
from core.models.architecture.architecture import UnknownFamilyError, known_families, read_architecture
from core.models.architecture.measuring import load_architecture
from core.models.description import is_tied
from core.models.find import locate_model
from tests.cases import cases
from tests.core.models.architecture import published
from tests.core.models.spoiling import write_zeros
from tests.families.tiny import write_family
from tests.measured_here import measured_here


@cases("name", published.PARAMETERS)
def test_published_models_have_exactly_their_parameters(name: str) -> None:
    config, parameters = published.PARAMETERS[name]
    architecture = read_architecture(config, name)
    assert architecture.parameters == parameters


def test_layers_of_two_kinds_are_distinguished() -> None:
    config = {**published.QWEN_1_5_MOE, "mlp_only_layers": [0, 1], "decoder_sparse_step": 2}
    architecture = read_architecture(config, "x")
    sparse, dense = architecture.layers
    assert (sparse.count, dense.count) == (11, 13)
    assert sparse.experts is not None
    assert dense.experts is None
    assert dense.width == 5632


@cases("family", ["somebodys_llama", "jamba", "t5"])
def test_a_family_that_the_tables_do_not_know_is_not_guessed(family: str) -> None:
    with pytest.raises(UnknownFamilyError, match=f"of the family {family}, whose memory has to be measured"):
        read_architecture({**published.LLAMA_3_8B, "model_type": family}, "x")


@cases(
    ("config", "words"),
    [
        ({}, "no model_type"),
        ({"model_type": "llama"}, "no num_attention_heads|no hidden_size"),
        ({**published.LLAMA_3_8B, "hidden_size": "4096"}, "hidden_size is '4096', not a size"),
        ({**published.LLAMA_3_8B, "hidden_size": 0}, "hidden_size is 0"),
        ({**published.LLAMA_3_8B, "num_hidden_layers": True}, "num_hidden_layers is True"),
        ({**published.LLAMA_3_8B, "vocab_size": 10**30}, "vocab_size"),
        ({**published.LLAMA_3_8B, "num_hidden_layers": 2_000_000_000}, "num_hidden_layers is 2000000000"),
        ({**published.LLAMA_3_8B, "attention_dropout": 7}, "attention_dropout is 7, not a share"),
        ({**published.DEEPSEEK_V3, "kv_lora_rank": "512"}, "kv_lora_rank is '512', not a size"),
    ],
)
def test_what_cannot_be_known_is_refused_in_one_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        read_architecture(config, "model/config.json")
    assert "model/config.json" in refusal.value.message
    assert refusal.value.hint


def test_what_sees_images_is_reported_and_not_counted() -> None:
    architecture = read_architecture(published.GEMMA_3_4B, "x")
    text = read_architecture(published.GEMMA_3_4B["text_config"], "x")
    assert architecture.parameters == text.parameters
    assert architecture.towers is not None
    assert architecture.towers.kinds == ("vision",)
    assert architecture.towers.bytes == pytest.approx(2 * (416_866_032 + 1152 * 2560 + 1152), rel=0.03)
    assert not architecture.towers.is_exact
    assert (architecture.family, architecture.depth, architecture.prefix) == ("gemma3_text", 34, "model.layers")


@cases("vision", [{"patch_size": 0}, {"hidden_size": True, "depth": 3}, "none", []])
def test_towers_whose_configuration_makes_no_sense_do_not_matter(vision: object) -> None:
    architecture = read_architecture({**published.GEMMA_3_4B, "vision_config": vision}, "x")
    assert architecture.towers is not None
    assert architecture.towers.bytes == 0


@cases(
    ("whole", "inner", "has_head", "expected"),
    [
        (True, False, True, True),
        (False, True, False, False),
        (None, None, True, False),
        (None, None, False, True),
        (None, False, False, True),
        (None, True, True, True),
        (None, None, None, None),
        (None, False, None, False),
    ],
)
def test_tied_embeddings(whole: bool | None, inner: bool | None, has_head: bool | None, expected: bool | None) -> None:
    text = {} if inner is None else {"tie_word_embeddings": inner}
    config = {"text_config": text} if whole is None else {"tie_word_embeddings": whole, "text_config": text}
    assert is_tied(config, has_head) is expected


def test_deepseeks_first_layers_have_no_experts() -> None:
    assert [layers.count for layers in read_architecture(published.DEEPSEEK_V3, "x").layers] == [3, 58]
    for first in (0, None, -1, True, "3"):
        (only,) = read_architecture({**published.DEEPSEEK_V3, "first_k_dense_replace": first}, "x").layers
        assert only.count == 61
    (only,) = read_architecture({**published.DEEPSEEK_V3, "first_k_dense_replace": 99}, "x").layers
    assert only.experts is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [*published.LLAMA_3_8B, *published.GPT_2, *published.QWEN_1_5_MOE, *published.DEEPSEEK_V3, *published.GEMMA_3_4B]
)


@given(st.sampled_from(known_families()), st.dictionaries(KEYS, JSON, max_size=4))
def test_any_json_gives_an_architecture_or_a_refusal(family: str, changes: dict[str, Any]) -> None:
    config = {**published.DEEPSEEK_V3, **published.QWEN_1_5_MOE, **published.GPT_2, "model_type": family, **changes}
    try:
        architecture = read_architecture(config, "x")
    except UserError:
        return
    assert architecture.parameters > 0
    assert architecture.depth >= 1


__all__ = ["measured_here"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with nothing but a configuration."""
    (tmp_path / "config.json").write_text(json.dumps({**published.SMOLLM2_135M, "num_hidden_layers": 1}))
    return tmp_path


def test_a_directory_with_nothing_but_a_configuration_is_enough(model: Path) -> None:
    architecture = load_architecture(locate_model(str(model)))
    assert architecture.depth == 1
    assert architecture.checkpoint is None


def test_weights_count_exactly_over_all_files(model: Path) -> None:
    plain = load_architecture(model)
    write_zeros(model / "model-1.safetensors", {"model.embed_tokens.weight": [49152, 576]})
    rest = plain.parameters - 49152 * 576
    write_zeros(model / "model-2.safetensors", {"model.layers.0.all": [rest], "model.vision.weight": [1000]})
    architecture = load_architecture(model)
    # Tensors beyond the structure are of parts that are not loaded.
    assert architecture.parameters == plain.parameters
    assert architecture.checkpoint is not None
    assert architecture.checkpoint.parameters == plain.parameters + 1000
    assert architecture.checkpoint.dtype == "BF16"
    assert architecture.checkpoint.largest == 49152 * 576 * 2
    assert architecture.checkpoint.bytes == sum(path.stat().st_size for path in model.glob("*.safetensors"))


def test_a_tied_head_that_is_saved_is_not_counted_twice(model: Path) -> None:
    plain = load_architecture(model)
    shapes = {"lm_head.weight": [49152, 576], "everything": [plain.parameters]}
    write_zeros(model / "model.safetensors", shapes)
    assert load_architecture(model).parameters == plain.parameters


@cases("damage", [b"", b"\xff" * 16, struct.pack("<Q", 5) + b"[1,2]", struct.pack("<Q", 9) + b'{"a": {}}'])
def test_damaged_weights_leave_what_the_configuration_says(model: Path, damage: bytes) -> None:
    (model / "model.safetensors").write_bytes(damage)
    assert load_architecture(model).checkpoint is None


@pytest.mark.slow
def test_towers_are_reported_of_families_that_are_measured(tmp_path: Path) -> None:
    model = write_family("qwen3_5", tmp_path / "m")
    names = load_file(model / "model.safetensors")
    towers = sum(tensor.nbytes for name, tensor in names.items() if ".visual." in name)
    found = load_architecture(model)
    assert found.description
    assert found.towers is not None
    assert (found.towers.kinds, found.towers.bytes, found.towers.is_exact) == (("vision",), towers, True)
    assert found.checkpoint is not None
    assert found.checkpoint.bytes == (model / "model.safetensors").stat().st_size - towers


def test_directories_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_architecture(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        load_architecture(tmp_path)
    for content in ("{", "[]", "\xff", "[" * 100_000):
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
        with pytest.raises(UserError, match=r"config\.json is (damaged|not)"):
            load_architecture(tmp_path)

"""Loading: text parts of composite models alone, and weights that are missing, too many, or of another shape."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from core.errors import UserError
from core.models.description import split_names
from core.worker.export.layout import read_layout
from core.worker.model.model import load_model
from core.worker.model.support import load_config, resolve_base, vocabulary_size
from core.worker.model.text_part import whole_name
from tests.cases import cases
from tests.core.models.spoiling import copy_model, edit_json, split_weights
from tests.families.tiny import FAMILIES, SHAPE, VOCABULARY, write_family
from tests.progress import quiet
from tests.short_list import long_but

COMPOSITE = [name for name, family in FAMILIES.items() if family.sees]
FEW = ("qwen3_5", "gemma3", "mistral3")


@pytest.fixture(scope="module")
def wide_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a tiny model of a composite family, in fp32, once."""
    folder = tmp_path_factory.mktemp("composite")
    return functools.cache(lambda name: write_family(name, folder / name, dtype="float32"))


def load(base: Path, method: str = "lora") -> Any:
    """A run's steps with a base, up to the model in memory."""
    resolve_base(str(base), quiet)
    return load_model(base, method=method, precision="fp32", device="cpu").model.eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 51).reshape(2, 24)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def load_whole(base: Path) -> Any:
    whole: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    return whole.eval()


def assert_is_part_of(model: Any, whole: Any) -> None:
    """The text part computes the same as the whole model, and knows the names of its weights there."""
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=0)
    theirs = dict(whole.named_parameters(remove_duplicate=False))
    for own, parameter in model.named_parameters(remove_duplicate=False):
        assert theirs[whole_name(model, own)].shape == parameter.shape


@pytest.mark.parametrize("name", long_but(FEW, COMPOSITE))
def test_the_text_part_alone_answers_as_the_whole_model(wide_of: Callable[[str], Path], name: str) -> None:
    model = load(wide_of(name))
    assert not any("vision" in module or "visual" in module for module, _ in model.named_modules())
    assert_is_part_of(model, load_whole(wide_of(name)))
    assert vocabulary_size(wide_of(name)) == VOCABULARY
    assert type(load_config(wide_of(name))) is type(model.config)


@pytest.mark.parametrize("name", long_but(FEW, COMPOSITE))
def test_the_towers_are_not_read(wide_of: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.core_model_loading as loading

    read: list[tuple[int, ...]] = []
    original = loading.spawn_materialize

    def spy(pool: Any, tensor: Any, *args: Any, **options: Any) -> Any:
        read.append(tuple(tensor.get_shape()))
        return original(pool, tensor, *args, **options)

    monkeypatch.setattr(loading, "spawn_materialize", spy)
    load(wide_of(name))
    state = load_file(wide_of(name) / "model.safetensors")
    text = [tuple(state[key].shape) for key in split_names(state).text]
    assert len(text) < len(state)
    assert sorted(read) == sorted(text)


@pytest.mark.parametrize("name", long_but(FEW, COMPOSITE))
def test_files_saved_from_the_text_class_load_as_well(
    wide_of: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """With its own configuration, and with the whole model's."""
    text = copy_model(wide_of(name), tmp_path / "text")
    (text / "model.safetensors").unlink()
    model = load(wide_of(name))
    model.save_pretrained(text)
    assert not any("language_model" in key for key in load_file(text / "model.safetensors"))
    theirs: Any = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32)
    torch.testing.assert_close(logits(theirs.eval()), logits(model), rtol=0, atol=0)
    torch.testing.assert_close(logits(load(text)), logits(model), rtol=0, atol=0)
    (text / "config.json").write_text((wide_of(name) / "config.json").read_text())
    torch.testing.assert_close(logits(load(text)), logits(model), rtol=0, atol=0)


@cases("name", ["gemma3", "mistral3"])
def test_both_forms_of_names_load(wide_of: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    """transformers 4 wrote ``language_model.model.layers``, 5 writes ``model.language_model.layers``."""
    base = copy_model(wide_of(name), tmp_path / name)
    state = load_file(base / "model.safetensors")
    for body, head in (("model.language_model.", ""), ("language_model.model.", "language_model.")):
        named = {
            (head + own if own.startswith("lm_head") else body + own.removeprefix("model.")): state[key]
            for key, own in split_names(state).text.items()
        }
        rest = {key: state[key] for key in split_names(state).others}
        save_file(named | rest, base / "model.safetensors", metadata={"format": "pt"})
        torch.testing.assert_close(logits(load(base)), logits(load_whole(wide_of(name))), rtol=0, atol=0)


def test_a_head_in_the_files_is_the_head_where_the_configuration_does_not_say(
    wide_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """As in Mistral Small 3.1, whose class ties by default."""
    base = copy_model(wide_of("mistral3"), tmp_path / "mistral3")
    text = json.loads((base / "config.json").read_text())["text_config"]
    text.pop("tie_word_embeddings", None)
    edit_json(base / "config.json", tie_word_embeddings=None, text_config=text)
    model = load(base)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    torch.testing.assert_close(logits(model), logits(load_whole(wide_of("mistral3"))), rtol=0, atol=0)
    assert read_layout(base).tied == {}


def test_a_model_whose_text_part_has_no_class_is_refused_with_the_reason(
    wide_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = copy_model(wide_of("gemma3"), tmp_path / "vl")
    config = transformers.AutoConfig.for_model("qwen3_vl").to_dict()
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"qwen3_vl, which .* cannot load its text part \(qwen3_vl_text\) alone"):
        resolve_base(str(base), quiet)


def test_the_hint_says_what_is_really_the_reason(wide_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = copy_model(wide_of("mistral3"), tmp_path / "model")
    edit_json(
        base / "config.json", transformers_version="99.1.0", text_config={"model_type": "mistral", "hidden_act": 5}
    )
    with pytest.raises(UserError) as refusal:
        resolve_base(str(base), quiet)
    assert "It was saved with transformers 99.1.0" in refusal.value.hint
    edit_json(base / "config.json", transformers_version=None)
    with pytest.raises(UserError) as refusal:
        resolve_base(str(base), quiet)
    assert refusal.value.hint.startswith("Take config.json, tokenizer and weights from the same version")


#: Models whose text part is named or placed in another way than in the families that people tune.
OTHERS = yaml.safe_load(Path(__file__).with_name("composites.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", long_but(["Idefics3", "Voxtral"], OTHERS))
def test_any_model_whose_text_part_has_a_class_is_loaded(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text, parts = getattr(transformers, OTHERS[name]["text"]), OTHERS[name]["parts"]
    values = SHAPE | OTHERS[name].get("values", {})
    config = getattr(transformers, f"{name}Config")(text_config=text(**values).to_dict(), **parts)
    whole = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    whole.save_pretrained(tmp_path)
    model = load_model(tmp_path, method="lora", precision="fp32", device="cpu", tokenizer=object()).model.eval()
    assert_is_part_of(model, whole)


State = dict[str, torch.Tensor]


def spoil(model: Path, change: Callable[[State], object]) -> Path:
    """Change the weights of a model."""
    state = load_file(model / "model.safetensors")
    change(state)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.fixture
def copy(tmp_path: Path, base_of: Callable[[str], Path]) -> Callable[[str], Path]:
    """Makes a copy of a model, each in a place of its own."""
    numbers = itertools.count()
    return lambda family: copy_model(base_of(family), tmp_path / f"{family}-{next(numbers)}")


NORM = "model.layers.1.post_attention_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"
#: In the files of a composite model.
TEXT_NORM = "language_model.model.layers.1.input_layernorm.weight"


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
        ("gemma3", _drop(TEXT_NORM), ["lacks weights of its architecture: model.layers.1.input_layernorm"]),
        (
            "gemma3",
            _put(TEXT_NORM.replace("input", "strange"), 64),
            ["does not take: model.layers.1.strange_layernorm.weight"],
        ),
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
        resolve_base(str(model), quiet)
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

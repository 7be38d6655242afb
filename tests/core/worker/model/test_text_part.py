"""Text parts of composite models: loaded alone, exact, with nothing of the towers read."""

from __future__ import annotations

import functools
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
from core.models.check import check_model_directory
from core.models.text_part import split_names
from core.worker.export.layout import read_layout
from core.worker.model.model import load_model
from core.worker.model.support import check_base, load_config, vocabulary_size
from core.worker.model.text_part import whole_name
from tests.cases import cases
from tests.core.models.spoiling import copy_model, edit_json
from tests.families.tiny import FAMILIES, SHAPE, VOCABULARY, write_family
from tests.short_list import long_but

COMPOSITE = [name for name, family in FAMILIES.items() if family.sees]
FEW = ("qwen3_5", "gemma3", "mistral3")


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a tiny model of a composite family, in fp32, once."""
    folder = tmp_path_factory.mktemp("composite")
    return functools.cache(lambda name: write_family(name, folder / name, dtype="float32"))


def load(base: Path) -> Any:
    check_base(check_model_directory(base))
    return load_model(base, method="lora", precision="fp32", device="cpu").model.eval()


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
def test_the_text_part_alone_answers_as_the_whole_model(base_of: Callable[[str], Path], name: str) -> None:
    model = load(base_of(name))
    assert not any("vision" in module or "visual" in module for module, _ in model.named_modules())
    assert_is_part_of(model, load_whole(base_of(name)))
    assert vocabulary_size(base_of(name)) == VOCABULARY
    assert type(load_config(base_of(name))) is type(model.config)


@pytest.mark.parametrize("name", long_but(FEW, COMPOSITE))
def test_the_towers_are_not_read(base_of: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.core_model_loading as loading

    read: list[tuple[int, ...]] = []
    original = loading.spawn_materialize

    def spy(pool: Any, tensor: Any, *args: Any, **options: Any) -> Any:
        read.append(tuple(tensor.get_shape()))
        return original(pool, tensor, *args, **options)

    monkeypatch.setattr(loading, "spawn_materialize", spy)
    load(base_of(name))
    state = load_file(base_of(name) / "model.safetensors")
    text = [tuple(state[key].shape) for key in split_names(state).text]
    assert len(text) < len(state)
    assert sorted(read) == sorted(text)


@pytest.mark.parametrize("name", long_but(FEW, COMPOSITE))
def test_files_saved_from_the_text_class_load_as_well(
    base_of: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """With its own configuration, and with the whole model's."""
    text = copy_model(base_of(name), tmp_path / "text")
    (text / "model.safetensors").unlink()
    model = load(base_of(name))
    model.save_pretrained(text)
    assert not any("language_model" in key for key in load_file(text / "model.safetensors"))
    theirs: Any = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32)
    torch.testing.assert_close(logits(theirs.eval()), logits(model), rtol=0, atol=0)
    torch.testing.assert_close(logits(load(text)), logits(model), rtol=0, atol=0)
    (text / "config.json").write_text((base_of(name) / "config.json").read_text())
    torch.testing.assert_close(logits(load(text)), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("name", long_but(FEW, COMPOSITE))
def test_missing_and_unknown_weights_are_errors(base_of: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    base = copy_model(base_of(name), tmp_path / name)
    state = load_file(base / "model.safetensors")
    norm = next(key for key in state if key.endswith("layers.1.input_layernorm.weight") and "vision" not in key)
    unknown = {**state, norm.replace("input_layernorm", "strange_norm"): state[norm].clone()}
    save_file(unknown, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not take: model\.layers\.1\.strange_norm\.weight"):
        load(base)
    del state[norm]
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of its architecture: model\.layers\.1\.input_layernorm"):
        load(base)


@cases("name", ["gemma3", "mistral3"])
def test_both_forms_of_names_load(base_of: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    """transformers 4 wrote ``language_model.model.layers``, 5 writes ``model.language_model.layers``."""
    base = copy_model(base_of(name), tmp_path / name)
    state = load_file(base / "model.safetensors")
    for body, head in (("model.language_model.", ""), ("language_model.model.", "language_model.")):
        named = {
            (head + own if own.startswith("lm_head") else body + own.removeprefix("model.")): state[key]
            for key, own in split_names(state).text.items()
        }
        rest = {key: state[key] for key in split_names(state).others}
        save_file(named | rest, base / "model.safetensors", metadata={"format": "pt"})
        torch.testing.assert_close(logits(load(base)), logits(load_whole(base_of(name))), rtol=0, atol=0)


def test_a_head_in_the_files_is_the_head_where_the_configuration_does_not_say(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """As in Mistral Small 3.1, whose class ties by default."""
    base = copy_model(base_of("mistral3"), tmp_path / "mistral3")
    text = json.loads((base / "config.json").read_text())["text_config"]
    text.pop("tie_word_embeddings", None)
    edit_json(base / "config.json", tie_word_embeddings=None, text_config=text)
    model = load(base)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    torch.testing.assert_close(logits(model), logits(load_whole(base_of("mistral3"))), rtol=0, atol=0)
    assert read_layout(base).tied == {}


def test_a_model_whose_text_part_has_no_class_is_refused_with_the_reason(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = copy_model(base_of("gemma3"), tmp_path / "vl")
    config = transformers.AutoConfig.for_model("qwen3_vl").to_dict()
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"qwen3_vl, which .* cannot load its text part \(qwen3_vl_text\) alone"):
        check_base(base)


def test_the_hint_says_what_is_really_the_reason(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = copy_model(base_of("mistral3"), tmp_path / "model")
    edit_json(
        base / "config.json", transformers_version="99.1.0", text_config={"model_type": "mistral", "hidden_act": 5}
    )
    with pytest.raises(UserError) as refusal:
        check_base(base)
    assert "It was saved with transformers 99.1.0" in refusal.value.hint
    edit_json(base / "config.json", transformers_version=None)
    with pytest.raises(UserError) as refusal:
        check_base(base)
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
    check_base(tmp_path)
    model = load_model(tmp_path, method="lora", precision="fp32", device="cpu", tokenizer=object()).model.eval()
    assert_is_part_of(model, whole)

"""Advice for a new configuration: taken where possible, else shown with its source."""

from __future__ import annotations

import pytest

from core.config.document import ConfigDocument
from core.models.architecture.architecture import Architecture, read_architecture
from core.presets.advised import Advised, advise, follow_base, taken_values
from core.presets.library import find_preset
from tests.families.published_models import published_config

GIB = 1 << 30


def shape(name: str) -> Architecture:
    return read_architecture(published_config(name), name)


def against_four_bits(found: tuple[Advised, ...]) -> Advised:
    return next(item for item in found if item.advice.option == "method.name")


def test_advice_against_4_bits_is_taken_where_16_bits_fit() -> None:
    values = find_preset("24gb-7b").values
    found = advise("Qwen/Qwen3.5-4B", values, shape("Qwen3-4B"), 24 * GIB)
    assert taken_values(found)["method.name"] == "lora"
    assert str(against_four_bits(found)).startswith('method.name = "lora", Qwen3.5 and 3.6: Unsloth advises against')


def test_where_16_bits_do_not_fit_it_is_reported_with_what_they_would_need() -> None:
    values = find_preset("24gb-30b").values
    item = against_four_bits(advise("Qwen/Qwen3.5-27B", values, shape("Qwen3-32B"), 24 * GIB))
    assert not item.taken
    assert "In 16 bits the run would need 7" in item.why
    assert item.why.endswith(" GB, so it is qlora here.")
    assert str(item).endswith("(https://unsloth.ai/docs/models/qwen3.5/fine-tune)")


@pytest.mark.parametrize(("model", "card"), [(None, 24 * GIB), (shape("Qwen3-4B"), None)])
def test_without_a_plan_it_is_reported_only(model: Architecture | None, card: int | None) -> None:
    item = against_four_bits(advise("Qwen/Qwen3.5-4B", find_preset("24gb-7b").values, model, card))
    assert (item.taken, item.why) == (False, "")


@pytest.mark.parametrize("preset", ["24gb-small", "24gb-7b-full-fine-tuning"])
def test_a_preset_that_has_no_4_bits_needs_no_advice_against_them(preset: str) -> None:
    found = advise("Qwen/Qwen3.5-4B", find_preset(preset).values, shape("Qwen3-4B"), 24 * GIB)
    assert "method.name" not in {item.advice.option for item in found}
    assert taken_values(found)["chat.top_k"] == 20


def test_of_an_unknown_model_nothing_is_reported() -> None:
    assert advise("my-model", find_preset("24gb-7b").values, shape("Llama-3.1-8B"), 24 * GIB) == ()


def test_advised_values_follow_the_base_and_the_users_own_stay() -> None:
    document = ConfigDocument("[chat]\ntemperature = 1.0\ntop_p = 0.8\ntop_k = 64\n\n[train]\nlearning_rate = 0.001\n")
    found = follow_base(document, "google/gemma-4-12B-it", "LiquidAI/LFM2-8B-A1B")
    assert {change.option: (change.before, change.after) for change in found} == {
        "chat.temperature": (1.0, 0.3),
        "chat.top_k": (64, None),
        "chat.min_p": (None, 0.15),
        "chat.repetition_penalty": (None, 1.05),
    }
    gone = follow_base(document, "google/gemma-4-12B-it", "my-model")
    assert {change.option: change.after for change in gone} == {"chat.temperature": None, "chat.top_k": None}
    assert follow_base(document, "LiquidAI/LFM2-8B-A1B", "google/gemma-4-12B-it") == (), "nothing of it was advised"


def test_what_was_advised_in_place_of_the_presets_value_is_the_presets_again() -> None:
    preset = find_preset("24gb-30b")
    document = ConfigDocument('# preset: 24gb-30b\n[method]\nname = "lora"\n[train]\nlearning_rate = 2e-4\n')
    (change,) = follow_base(document, "openai/gpt-oss-20b", "my-model")
    assert (change.option, change.after) == ("train.learning_rate", preset.values["train.learning_rate"])
    # Whether 16 bits fit is another question.
    assert follow_base(document, "Qwen/Qwen3.5-4B", "my-model") == ()

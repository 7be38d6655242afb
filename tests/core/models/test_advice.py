"""Advice by model: every entry is about an option that exists, has a source, and reaches the models that it names."""

from __future__ import annotations

import json
from pathlib import Path

from core.config.schema import Config, find_option
from core.models.advice import Advice, advice_by_identity, advice_for, entries
from core.presets.library import presets
from tests.cases import cases
from tests.families.published_models import PUBLISHED, published_config


@cases("entry", entries(), ids=lambda entry: f"{entry.advice.models} {entry.advice.option}")
def test_an_entry_has_a_source_and_a_valid_value(entry: object) -> None:
    advice: Advice = entry.advice  # type: ignore[attr-defined]
    assert advice.says.endswith(".")
    assert advice.says[0].isupper()
    for source in advice.source.split("; "):
        assert source.startswith("https://") or " " in source, "an address, or a repository and a path"
        if not source.startswith("https://"):
            repository, _, path = source.partition(" ")
            assert "/" in repository
            assert "@" in repository
            assert path
    if not advice.option:
        assert advice.value is None
        return
    option = find_option(advice.option)
    assert option is not None
    if advice.value is not None:
        section, _, key = advice.option.partition(".")
        values = {"data": {"train": "rows.jsonl"}, section: {key: advice.value}}
        config = Config.model_validate(values)
        assert getattr(getattr(config, section), key) == advice.value
        if not any(advice.option in preset.values for preset in presets().values()):
            assert advice.value != option.default, "a default needs no advice"


def test_nobody_is_advised_twice_on_one_option() -> None:
    for name in PUBLISHED:
        found = [advice.option for advice in advice_by_identity((), [name]) if advice.option]
        assert len(found) == len(set(found)), name


def _told(base: str) -> dict[str, object]:
    return {advice.option: advice.value for advice in advice_for(base)}


@cases(
    ("name", "expected"),
    [
        ("Qwen/Qwen3.5-9B", {"method.name": "lora", "chat.temperature": 1.0}),
        ("unsloth/Qwen3.6-35B-A3B", {"method.name": "lora", "chat.top_k": 20}),
        ("Qwen/Qwen3-30B-A3B", {"chat.temperature": 0.6}),
        ("google/gemma-4-12B-it", {"chat.top_k": 64, "method.name": None}),
        ("google/gemma-3-27b-it", {"chat.top_k": 64, "train.learning_rate": None}),
        ("openai/gpt-oss-20b", {"chat.temperature": 1.0, "template.variables": None, "train.learning_rate": 2e-4}),
        ("meta-llama/Llama-3.1-8B-Instruct", {"chat.temperature": 0.6, "train.learning_rate": None}),
        ("unsloth/Llama-3.2-3B-Instruct", {"chat.top_p": 0.9}),
        ("allenai/Olmo-3-7B-Instruct", {"train.learning_rate": None, "chat.temperature": 0.6}),
        ("allenai/Olmo-3-1025-7B", {"train.learning_rate": None}),
        ("ibm-granite/granite-4.0-h-micro", {"method.target_modules": None}),
        ("mistralai/Mistral-7B-Instruct-v0.3", {"train.weight_decay": 0.1}),
        ("mistralai/Ministral-3-3B-Instruct-2512", {"chat.temperature": 0.15, "train.learning_rate": None}),
        ("mistralai/Ministral-3-3B-Reasoning-2512", {"chat.temperature": 0.7}),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", {"chat.temperature": 0.15}),
        ("zai-org/GLM-4.7-Flash", {"chat.temperature": 1.0, "train.learning_rate": None}),
        ("microsoft/phi-4", {"chat.temperature": 0.8, "train.learning_rate": None}),
        ("microsoft/Phi-4-mini-instruct", {"train.learning_rate": None}),
        ("HuggingFaceTB/SmolLM3-3B", {"chat.temperature": 0.6, "train.learning_rate": None}),
        ("LiquidAI/LFM2-8B-A1B", {"chat.min_p": 0.15, "train.learning_rate": None}),
        ("ibm-granite/granite-3.3-2b-instruct", {"train.learning_rate": None}),
    ],
)
def test_a_model_is_recognized_by_its_name(name: str, expected: dict[str, object]) -> None:
    assert expected.items() <= _told(name).items()


@cases(
    "name",
    [
        "meta-llama/Llama-2-7b-hf",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "mistralai/Mistral-7B-Instruct-v0.1",
        "allenai/OLMo-2-1124-7B",
        "Qwen/Qwen2.5-7B",
        "Qwen/Qwen3-4B-Instruct-2507",
        "Qwen/Qwen3-8B-Base",
        "Qwen/Qwen3-Embedding-4B",
        "microsoft/Phi-3.5-mini-instruct",
        "mistralai/Ministral-8B-Instruct-2410",
        "my-model",
    ],
)
def test_of_others_nothing_is_said(name: str) -> None:
    assert advice_for(name) == ()


def test_a_directory_is_recognized_by_its_family(tmp_path: Path) -> None:
    model = tmp_path / "mine"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(published_config("Gemma-4-E2B")))
    assert _told(str(model))["chat.top_k"] == 64
    # Either family alone does not identify the model.
    (model / "config.json").write_text(json.dumps(published_config("Qwen3-8B")))
    assert advice_for(str(model)) == ()
    named = tmp_path / "Qwen3-8B"
    model.rename(named)
    assert _told(str(named))["chat.temperature"] == 0.6


def test_another_family_with_such_a_name_is_not_advised_on(tmp_path: Path) -> None:
    model = tmp_path / "llama-like-qwen3.5-9b"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(published_config("Llama-3.1-8B")))
    assert advice_for(str(model)) == ()


@cases("content", ["", "{", "[]", '{"model_type": 5, "text_config": []}'])
def test_a_broken_description_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert advice_for(str(tmp_path)) == ()


def test_a_damaged_model_is_still_advised_on_by_its_name(tmp_path: Path) -> None:
    """A damaged model still gets advice; its loading reports the damage."""
    model = tmp_path / "Qwen3-8B"
    model.mkdir()
    (model / "config.json").write_text("{")
    assert _told(str(model)) == _told("Qwen3-8B")


@cases("name", ["", "a\0b", "x" * 5000, "~nobody/model", "hf://a/b@\0", "\ud800"])
def test_an_impossible_name_says_nothing(name: str) -> None:
    assert advice_for(name) == ()

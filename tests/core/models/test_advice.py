"""Advice by model: every entry is about an option that exists, has a source, and reaches the models that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

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
        assert re.match(r"https://|[^ ]+/[^ ]+@[^ ]+ .", source), "an address, or a repository with commit and path"
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


TABLES = yaml.safe_load(Path(__file__).with_name("advised.yaml").read_text(encoding="utf-8"))


@cases(("name", "expected"), TABLES["advised"].items())
def test_a_model_is_recognized_by_its_name(name: str, expected: dict[str, object]) -> None:
    assert expected.items() <= _told(name).items()


@cases("name", [*TABLES["others"], "", "a\0b", "x" * 5000, "~nobody/model", "hf://a/b@\0", "\ud800"])
def test_of_others_and_of_impossible_names_nothing_is_reported(name: str) -> None:
    assert advice_for(name) == ()


def _directory(path: Path, published: str) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(published_config(published)))
    return str(path)


def test_a_directory_is_recognized_by_its_family(tmp_path: Path) -> None:
    assert _told(_directory(tmp_path / "mine", "Gemma-4-E2B"))["chat.top_k"] == 64
    # A family that several models share does not identify one, nor does a name of another family.
    assert advice_for(_directory(tmp_path / "own", "Qwen3-8B")) == ()
    assert _told(_directory(tmp_path / "Qwen3-8B", "Qwen3-8B"))["chat.temperature"] == 0.6
    assert advice_for(_directory(tmp_path / "llama-like-qwen3.5-9b", "Llama-3.1-8B")) == ()


@cases("content", ["", "{", "[]", '{"model_type": 5, "text_config": []}'])
def test_a_damaged_model_is_advised_on_by_its_name_alone(tmp_path: Path, content: str) -> None:
    """Its loading reports the damage."""
    for name, advised in (("any", {}), ("Qwen3-8B", _told("Qwen3-8B"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        assert _told(str(tmp_path / name)) == advised

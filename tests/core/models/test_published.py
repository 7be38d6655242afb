"""Published models: found by the names that people write, with the number of parameters that the hub shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from core.models import published
from core.models.architecture.architecture import read_architecture
from core.models.published import find_published, locate_shape
from tests.cases import cases
from tests.families.published_models import PUBLISHED

PARAMETERS: dict[str, int] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())
LINES = Path(published.__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()


@cases("name", PARAMETERS)
def test_its_shape_has_the_published_number_of_parameters(name: str) -> None:
    found = find_published(name)
    assert found is not None
    assert read_architecture(found.config, name).parameters == PARAMETERS[name]


def test_every_line_is_found_and_compared_with_a_published_number() -> None:
    """Here, or with the models of the README (``tests/families/test_published_plans.py``)."""
    found = [find_published(name) for name in (*PARAMETERS, *(f"any/{name}" for name in PUBLISHED))]
    compared = [model.config for model in found if model is not None]
    for line in map(json.loads, LINES):
        assert line["config"] in compared, line["ids"]
        for name in line["ids"]:
            model = find_published(name)
            assert model is not None
            assert (model.id, model.config) == (name, line["config"])


NAMES = {
    "Qwen/Qwen3-8B": "Qwen/Qwen3-8B",
    "qwen/qwen3-8b-base": "Qwen/Qwen3-8B",
    "hf://Qwen/Qwen3-8B@main": "Qwen/Qwen3-8B",
    "unsloth/Qwen3-8B-bnb-4bit": "Qwen/Qwen3-8B",
    "unsloth/Qwen3-8B-unsloth-bnb-4bit": "Qwen/Qwen3-8B",
    "mlx-community/Qwen3-8B-bf16": "Qwen/Qwen3-8B",
    "Qwen/Qwen3-4B-Instruct-2507": "Qwen/Qwen3-4B",
    "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ": "Qwen/Qwen2.5-Coder-7B",
    "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit": "meta-llama/Llama-3.1-8B",
    "NousResearch/Llama-2-7b-chat-hf": "meta-llama/Llama-2-7b-hf",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistralai/Mistral-7B-v0.3",
    "google/gemma-3-12b-pt": "google/gemma-3-12b-it",
    "allenai/Olmo-3-7B-Think": "allenai/Olmo-3-1025-7B",
    "allenai/Olmo-3-7B-Instruct": "allenai/Olmo-3-1025-7B",
    "mistralai/Ministral-3-8B-Reasoning-2512": "mistralai/Ministral-3-8B-Instruct-2512",
    "someone/Qwen3-8B-pruned": "",
    "someone/Qwen3-9B": "",
    "Qwen3-8B": "",
    "./Qwen/Qwen3-8B": "",
}


@cases("name", NAMES)
def test_variants_and_reuploads_are_found_by_one_rule(name: str) -> None:
    """Other models, and names that are no hub ids, are not."""
    found = find_published(name)
    assert (found.id if found is not None else "") == NAMES[name]
    assert found is None or str(found) == name


def test_the_files_of_a_model_that_is_here_go_before(tmp_path: Path) -> None:
    (tmp_path / "Qwen" / "Qwen3-8B").mkdir(parents=True)
    assert locate_shape("Qwen/Qwen3-8B", tmp_path) == tmp_path / "Qwen" / "Qwen3-8B"
    assert locate_shape("Qwen/Qwen3-4B", tmp_path) == find_published("Qwen/Qwen3-4B")
    with pytest.raises(UserError, match="not on this machine"):
        locate_shape("Qwen/Qwen3-9B", tmp_path)

"""The installed transformers and its known architectures, without importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from core.models import installed
from core.models.installed import check_known, known_model_types, newer_version, transformers_version
from core.models.sandboxed import check_base, inspect_model
from tests.cases import cases
from tests.core.models.spoiling import copy_model, edit_json


@pytest.mark.long
@pytest.mark.slow
def test_the_known_architectures_are_those_of_transformers() -> None:
    """As transformers itself says, in another process: it must not be imported here."""
    code = "from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as names; print(*names)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert known_model_types() == set(said)


def test_it_is_not_imported() -> None:
    code = "import sys; from core.models.installed import *; known_model_types(); print('transformers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


@cases(
    ("said", "newer"),
    [
        ("99.1.0", "99.1.0"),
        ("99.1.0.dev0", "99.1.0"),
        ("4.51.0", None),
        (transformers_version(), None),
        ("next", None),
        ("9" * 1000, None),
        (99, None),
        (None, None),
    ],
)
def test_newer_versions(said: object, newer: str | None) -> None:
    assert newer_version({"transformers_version": said}) == newer


@pytest.mark.parametrize("part", ["whole", "text"])
def test_a_model_that_is_newer_names_the_version_that_knows_it(part: str) -> None:
    config = {"model_type": "newest" if part == "whole" else "gemma3", "transformers_version": "99.1.0"}
    if part == "text":
        config |= {"text_config": {"model_type": "newest"}}  # type: ignore[dict-item]
    with pytest.raises(UserError) as refusal:
        check_known(config, Path("model"))
    assert refusal.value.message == (
        f"model is of the architecture newest, which transformers {transformers_version()} does not know; it was saved "
        "with transformers 99.1.0, which does."
    )
    assert refusal.value.hint == "Upgrade transformers: pip install --upgrade 'transformers>=99.1.0'."


def test_the_app_tells_it_before_a_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    edit_json(
        model / "config.json", model_type="newest", architectures=["NewestForCausalLM"], transformers_version="99.1.0"
    )
    with pytest.raises(UserError, match=r"saved with transformers 99\.1\.0, which does"):
        check_base(str(model))
    facts = inspect_model(model)
    assert "saved with transformers 99.1.0, which does" in facts.flaw
    assert facts.family == "newest"


def test_without_transformers_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "known_model_types", frozenset)
    check_known({"model_type": "newest"}, Path("model"))

"""The catalog of base models: where it looks, and that unchanged models are read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.recent import remember_config
from core.config.schema import Config, DataSection, ModelSection
from core.models.inspection import ModelFacts
from core.models.places import FoundModel
from core.runs.catalog.earlier import ModelCatalog, search_places, used_bases
from core.runs.record.store import create_run
from tests.core.models.spoiling import copy_model


def test_models_of_earlier_runs_and_configurations_lead_to_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert search_places(work) == [work, Path.home() / "models"]
    for place in ("of-runs", "of-configs"):
        (tmp_path / place / "model").mkdir(parents=True)
    config = Config(data=DataSection(train="rows"), model=ModelSection(base=str(tmp_path / "of-runs" / "model")))
    create_run(config, "one")
    create_run(config.model_copy(update={"model": ModelSection(base="/gone/model")}), "two")
    path = tmp_path / "of-configs" / "a.toml"
    path.write_text('model.base = "model"\n')
    remember_config(path)
    broken = tmp_path / "broken.toml"
    broken.write_text("[")
    remember_config(broken)
    assert used_bases() == [tmp_path / "of-runs" / "model", tmp_path / "of-configs" / "model"]
    assert search_places(tmp_path / "elsewhere") == [
        work,
        tmp_path / "elsewhere",
        Path.home() / "models",
        tmp_path / "of-runs",
        tmp_path / "of-configs",
    ]


def test_an_unchanged_model_is_read_once(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    read: list[Path] = []

    def inspect(path: Path) -> ModelFacts:
        read.append(path)
        return ModelFacts(family="x")

    monkeypatch.setattr("core.models.sandboxed.inspect_model", inspect)
    catalog = ModelCatalog()
    found = FoundModel("model", str(model), model, "directory", "")
    assert catalog.read(found) is catalog.read(found)
    assert len(read) == 1
    (model / "config.json").write_text("{}")
    catalog.read(found)
    assert len(read) == 2
    (model / "dangling").symlink_to(tmp_path / "none")
    catalog.read(found)
    assert len(read) == 3


def test_a_model_that_is_gone_meanwhile_is_told(tmp_path: Path) -> None:
    gone = FoundModel("gone", str(tmp_path / "gone"), tmp_path / "gone", "directory", "")
    assert "cannot be read" in ModelCatalog().read(gone).flaw

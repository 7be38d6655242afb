"""Earlier runs to begin from: their configurations and base models."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.document import ConfigDocument
from core.config.files import remember_config
from core.config.schema import Config, DataSection, ModelSection
from core.errors import UserError
from core.models.inspection import ModelFacts
from core.models.places import FoundModel
from core.runs.catalog import earlier
from core.runs.record.store import Run, create_run
from tests.core.models.spoiling import copy_model
from tests.core.runs.helpers import there


def make(home: Path, identity: str, model: str, epochs: float = 1.0) -> Run:
    path = home / "runs" / identity
    path.mkdir(parents=True)
    (path / "run.toml").write_text(f'[model]\nbase = "{model}"\n[train]\nepochs = {epochs}\n')
    return Run(path)


def test_the_name_goes_before_the_model_and_the_newest_before_others(home: Path) -> None:
    make(home, "20260101-000000-tickets", "m", 1.0)
    named = make(home, "20260102-000000-tickets-2", "m", 2.0)
    make(home, "20260103-000000-other", "m", 3.0)
    alike = make(home, "20260104-000000-tickets-too", "m", 4.0)
    found = there(earlier.newest_like("Tickets", "m"))
    assert (found.run, found.values["train.epochs"]) == (named, 2.0)
    assert earlier.newest_like("nothing", "m") == earlier.Origin(alike, alike.values())
    assert earlier.newest_like("nothing", "n") is None
    alike.config_path.write_text("= 3")
    assert earlier.newest_like("nothing", "m") != found, "what cannot be read is passed over"
    assert earlier.newest_like("nothing", "m") is not None


@pytest.fixture
def run(private_home: Path, tmp_path: Path) -> Run:
    """A run of a configuration with two values of its own."""
    rows = tmp_path / "faq.csv"
    rows.write_text("question,answer\na,b\n")
    document = ConfigDocument('[data]\ntrain = "faq.csv"\n[train]\nlearning_rate = 5e-4\n', tmp_path / "faq.toml")
    return create_run(document.validate(), "faq")


def test_only_what_differs_from_the_defaults_is_written(run: Run, tmp_path: Path) -> None:
    document = earlier.begin_from(run)
    assert document.path is None
    assert document.get("data.train") == str(tmp_path / "faq.csv")
    assert document.get("train.learning_rate") == 5e-4
    assert document.get("method.name") is None
    assert "[lora]" not in document.dumps()
    assert document.validate() == run.config()
    text = run.config_path.read_text() + "\n[later]\nkey = 1\n"
    run.config_path.write_text(text)
    assert earlier.begin_from(run).dumps() == text, "one of another version is opened as it is"
    run.config_path.write_text("= 3")
    with pytest.raises(UserError, match=r"run\.toml is not valid TOML"):
        earlier.begin_from(run)


def test_the_name_goes_with_the_data(run: Run) -> None:
    origin, document = earlier.Origin.of(run), earlier.begin_from(run)
    assert earlier.run_name(document, origin) == "faq"
    assert earlier.belongs(run, document, origin)
    document.set("train.learning_rate", 1e-3)
    assert earlier.belongs(run, document, origin)
    document.set("data.train", "/elsewhere/alpaca.jsonl")
    assert earlier.run_name(document, origin) == "alpaca"
    assert not earlier.belongs(run, document, origin)
    assert earlier.belongs(run, ConfigDocument("", Path("/any/faq.toml")))
    assert not earlier.belongs(run, ConfigDocument("", Path("/any/faq-x.toml")))
    assert earlier.belongs(run, ConfigDocument())


def test_the_directory_of_a_run_is_distinguished_from_others(run: Run) -> None:
    assert earlier.read_run(str(run.path)) == run
    assert [earlier.read_run(path) for path in ("", "/nowhere", "/a\0b", "relative")] == [None] * 4


def test_models_are_searched_beside_models_used_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert earlier.search_places(work) == [work, Path.home() / "models"]
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
    assert earlier.used_bases() == [tmp_path / "of-runs" / "model", tmp_path / "of-configs" / "model"]
    assert earlier.search_places(tmp_path / "elsewhere") == [
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
    catalog = earlier.ModelCatalog()
    found = FoundModel("model", str(model), model, "directory", "")
    assert catalog.read(found) is catalog.read(found)
    assert len(read) == 1
    (model / "config.json").write_text("{}")
    catalog.read(found)
    assert len(read) == 2
    (model / "dangling").symlink_to(tmp_path / "none")
    catalog.read(found)
    assert len(read) == 3
    gone = FoundModel("gone", str(tmp_path / "gone"), tmp_path / "gone", "directory", "")
    assert "cannot be read" in catalog.read(gone).flaw

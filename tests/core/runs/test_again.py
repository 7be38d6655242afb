"""The configuration of a run as the beginning of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.document import ConfigDocument
from core.errors import UserError
from core.runs.catalog.earlier import Origin, begin_from, belongs, read_run, run_name
from core.runs.record.store import Run, create_run
from tests.cases import cases


@pytest.fixture
def run(private_home: Path, tmp_path: Path) -> Run:
    """A run of a configuration with two values of its own."""
    rows = tmp_path / "faq.csv"
    rows.write_text("question,answer\na,b\n")
    document = ConfigDocument('[data]\ntrain = "faq.csv"\n[train]\nlearning_rate = 5e-4\n', tmp_path / "faq.toml")
    return create_run(document.validate(), "faq")


def test_only_what_differs_from_the_defaults_is_written(run: Run, tmp_path: Path) -> None:
    document = begin_from(run)
    assert document.path is None
    assert document.get("data.train") == str(tmp_path / "faq.csv")
    assert document.get("train.learning_rate") == 5e-4
    assert document.get("method.name") is None
    assert "[lora]" not in document.dumps()
    assert document.validate() == run.config()


def test_one_of_another_version_is_opened_as_it_is(run: Run) -> None:
    text = run.config_path.read_text() + "\n[later]\nkey = 1\n"
    run.config_path.write_text(text)
    assert begin_from(run).dumps() == text


def test_one_that_cannot_be_read_is_an_error(run: Run) -> None:
    run.config_path.write_text("= 3")
    with pytest.raises(UserError, match=r"run\.toml is not valid TOML"):
        begin_from(run)


def test_the_name_goes_with_the_data(run: Run) -> None:
    origin, document = Origin.of(run), begin_from(run)
    assert run_name(document, origin) == "faq"
    assert belongs(run, document, origin)
    document.set("train.learning_rate", 1e-3)
    assert belongs(run, document, origin)
    document.set("data.train", "/elsewhere/alpaca.jsonl")
    assert run_name(document, origin) == "alpaca"
    assert not belongs(run, document, origin)
    assert belongs(run, ConfigDocument("", Path("/any/faq.toml")))
    assert not belongs(run, ConfigDocument("", Path("/any/faq-x.toml")))
    assert belongs(run, ConfigDocument())


@cases("path", ["", "/nowhere", "/a\0b", "relative"])
def test_a_directory_that_is_no_run(path: str) -> None:
    assert read_run(path) is None


def test_the_directory_of_a_run(run: Run) -> None:
    assert read_run(str(run.path)) == run

"""The valid part of a configuration that is still being written."""

from __future__ import annotations

from pathlib import Path

from core.config.document import ConfigDocument, valid_part
from tests.cases import cases


def test_a_valid_one_is_taken_as_it_is(tmp_path: Path) -> None:
    document = ConfigDocument('[data]\ntrain = "rows.jsonl"\n[method]\nrank = 64\n', tmp_path / "a.toml")
    assert valid_part(document) == document.validate()


def test_what_is_wrong_has_its_default_and_the_rest_counts() -> None:
    document = ConfigDocument('[method]\nrank = "many"\nname = "lora"\n[train]\nbatch_size = 4\n')
    before = document.dumps()
    config = valid_part(document)
    assert (config.method.rank, config.method.name, config.train.batch_size) == (16, "lora", 4)
    assert document.dumps() == before


@cases(
    "text",
    ["", "method = 5\n", "[nothing]\nx = 1\n", "[train]\nbathc = 4\n", '[data]\ntrain = ""\n', "[data]\ntrain = 5\n"],
)
def test_there_is_always_one(text: str) -> None:
    assert valid_part(ConfigDocument(text)).train.batch_size == 8


def test_options_that_do_not_go_together_are_given_up() -> None:
    text = '[data]\ntrain = "a"\neval = "b"\neval_share = 0.1\n[train]\nbatch_size = 2\n'
    assert valid_part(ConfigDocument(text)).train.batch_size == 2

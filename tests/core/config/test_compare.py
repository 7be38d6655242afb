"""Differences between configurations, by option and by line."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from core.config.compare import DiffLine, diff_texts, diff_values, differences, holding_values
from core.config.document import ConfigDocument, dump_config


def test_a_configuration_and_the_run_of_it_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "model").mkdir()
    path = tmp_path / "a.toml"
    path.write_text('[model]\nbase = "model"\n[data]\ntrain = ["rows.jsonl"]\n[train]\nepochs = 2\n')
    document = ConfigDocument.load(path)
    used = ConfigDocument(dump_config(document.validate()), tmp_path / "elsewhere" / "run.toml")
    assert differences(holding_values(document), holding_values(used)) == {}
    document.set("train.epochs", 3.0)
    assert differences(holding_values(document), holding_values(used)) == {"train.epochs": 2.0}


def test_what_is_not_said_is_the_default_and_true_is_not_one() -> None:
    values = holding_values(ConfigDocument('[method]\ndora = 1\nrank = 16\n[data]\ntrain = "a"\n'))
    found = differences(values, {"method.dora": True, "data.train": values["data.train"]})
    assert found == {"method.dora": True}


def test_options_that_differ_stand_below_their_sections() -> None:
    before, after = ({"train.epochs": 1.0, "data.train": "a", "method.rank": rank} for rank in (16, 8))
    after["data.eval"] = "b"
    assert diff_values(before, after) == [
        DiffLine("head", "[data]"),
        DiffLine("added", 'eval = "b"'),
        DiffLine("head", "[method]"),
        DiffLine("removed", "rank = 16"),
        DiffLine("added", "rank = 8"),
    ]
    assert diff_values(before, before) == []


def test_lines_with_what_is_around_them() -> None:
    found = diff_texts("a\nb\nc\n", "a\nx\nc\n")
    assert found[0] == DiffLine("head", "lines 1 to 4")
    assert [(line.kind, line.text) for line in found[1:4]] == [("same", "a"), ("removed", "b"), ("added", "x")]


@given(st.text(alphabet="ab\n@+-", max_size=40), st.text(alphabet="ab\n@+-", max_size=40))
def test_both_texts_are_in_the_comparison(before: str, after: str) -> None:
    found = diff_texts(before, after)
    assert bool(found) == (before != after)
    old = [line.text for line in found if line.kind in ("same", "removed")]
    new = [line.text for line in found if line.kind in ("same", "added")]
    assert not set(old) - set(before.split("\n"))
    assert not set(new) - set(after.split("\n"))

"""Path completion from a real directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import cases
from tui.widgets.forms.inputs import NameSuggester, complete_path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("train.jsonl", "train_big.JSONL", "notes.md", "data/inner.csv", "evil\x1b[31m.jsonl"):
        (tmp_path / name).write_text("x")
    return tmp_path


@cases(
    ("typed", "expected"),
    [
        ("", ["data/", "train.jsonl", "train_big.JSONL"]),
        ("tr", ["train.jsonl", "train_big.JSONL"]),
        ("data", ["data/"]),
        ("data/", ["data/inner.csv"]),
        ("./da", ["./data/"]),
        (".h", [".hidden/"]),
        ("nowhere/x", []),
        ("train.jsonl/x", []),
    ],
)
def test_a_path_is_completed_by_directories_and_files_of_the_kinds(tree: Path, typed: str, expected: list[str]) -> None:
    assert complete_path(typed, tree, (".jsonl", ".csv")) == expected


def test_absolute_and_home_paths(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete_path(f"{tree}/da", Path("/"), ()) == [f"{tree}/data/"]
    monkeypatch.setenv("HOME", str(tree))
    assert complete_path("~/tr", Path("/"), (".jsonl",)) == ["~/train.jsonl", "~/train_big.JSONL"]


def test_names_that_cannot_be_shown_are_left_out(tree: Path) -> None:
    assert not any("\x1b" in path for path in complete_path("", tree))


@cases(
    ("typed", "suggested"),
    [("faq@40 ./tr", "faq@40 ./train.jsonl"), ("data", "data/"), ("base ", None), ("faq@40", None), ("base my", None)],
)
async def test_the_last_of_several_names_is_completed(tree: Path, typed: str, suggested: str | None) -> None:
    (tree / "my model").mkdir(exist_ok=True)
    assert await NameSuggester(tree, (".jsonl",)).get_suggestion(typed) == suggested

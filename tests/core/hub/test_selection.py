"""File selection: the files of a repository that an entry takes, and their description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.hub.selection import data_names, read_subsets, select
from core.hub_uri import parse_entry
from tests.cases import cases

CASES = yaml.safe_load(Path(__file__).with_name("selection.yaml").read_text(encoding="utf-8"))


def taken(entry: str, names: list[str], card: Any = None) -> tuple[list[str], str]:
    selection = select(parse_entry(f"hf://datasets/me/set{entry}"), data_names(names), read_subsets(card))
    return list(selection.names), selection.reason


@cases(("entry", "names", "card", "wanted"), CASES["taken"])
def test_files_are_chosen_by_the_card_or_their_names(
    entry: str, names: list[str], card: Any, wanted: list[str]
) -> None:
    names_taken, reason = taken(entry, names, card)
    assert names_taken == wanted
    assert reason.endswith(".")


@cases(("files", "wanted"), CASES["data_files"])
def test_all_ways_of_a_card_to_name_files(files: Any, wanted: dict[str, list[str]]) -> None:
    (subset,) = read_subsets({"configs": [{"config_name": "x", "data_files": files}]})
    assert subset.splits == wanted
    (below,) = read_subsets({"configs": [{"config_name": "x", "data_dir": "sub"}]})
    assert below.splits == {"train": ["sub/**"]}


@cases("card", CASES["silent"])
def test_a_card_that_says_nothing_is_left_out(card: Any) -> None:
    assert read_subsets(card) == []


@cases(
    ("entry", "names", "card", "says", "hint"),
    [*CASES["refused"], ("", [f"{number}.csv" for number in range(600)], None, "600 files, and 512", "0.csv")],
)
def test_what_is_not_clear_is_a_sentence(entry: str, names: list[str], card: Any, says: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        taken(entry, names, card)
    assert says in caught.value.message
    assert hint in caught.value.hint


# A matcher that goes back and forth would take longer than anybody waits.
@pytest.mark.timeout(60)
def test_a_pattern_that_is_made_to_take_long_does_not() -> None:
    name = "a/" * 60 + "b.jsonl"
    card = {"configs": [{"data_files": [{"split": "train", "path": "**/a/" * 50 + "*a*a*a*a*a*a*a*c.jsonl"}]}]}
    with pytest.raises(UserError, match="names no data file"):
        taken("", [name], card)


@cases(("names", "says"), [*CASES["unsafe"], (["a.jsonl", "x" * 300 + ".jsonl"], "which is too long")])
def test_names_that_cannot_lie_side_by_side_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        data_names(names)
    assert says in caught.value.message
    assert caught.value.message.isprintable()


def test_names_of_what_is_kept_beside_the_files_are_left_out() -> None:
    names = ["localtune.json", "LocalTune.json", "localtune.json/a.jsonl", ".partial/a.jsonl", "a/.b.jsonl"]
    assert data_names([*names, "a/localtune.json", "refs.json"]) == ["a/localtune.json", "refs.json"]


def test_a_card_with_more_than_is_read_is_a_sentence() -> None:
    many = {"configs": [{"config_name": str(n), "data_files": ["a*"] * 100} for n in range(101)]}
    with pytest.raises(UserError, match="more than 10000 files or patterns"):
        read_subsets(many)
    long = {"configs": [{"data_dir": "x" * 2000}, {"data_dir": "x" * 1000, "data_files": ["y" * 100, "z"]}]}
    assert [dict(subset.splits) for subset in read_subsets(long)] == [{"train": ["x" * 1000 + "/z"]}]


def test_patterns_are_compared_with_names_only_so_often() -> None:
    names = [f"data/train-{number}.jsonl" for number in range(5000)]
    listed = {"configs": [{"data_files": [{"split": "train", "path": names[:500]}]}]}
    assert len(taken("", names, listed)[0]) == 500
    wild = {"configs": [{"data_files": [{"split": "train", "path": [f"{name}*" for name in names]}]}]}
    with pytest.raises(UserError, match="5000 data files and 5000 patterns, too many to compare"):
        taken("", names, wild)

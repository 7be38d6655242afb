"""File selection: the files of a repository that an entry takes, and their description."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import UserError
from core.hub.selection import data_names, read_subsets, select
from core.hub_uri import parse_entry
from tests.cases import cases

SPLITS = ["data/test-0.parquet", "data/train-0.parquet", "data/train-1.parquet", "data/validation-0.parquet"]
LANGUAGES = ["de/test.jsonl", "de/train.jsonl", "en/test.jsonl", "en/train.jsonl"]
CARD: dict[str, Any] = {
    "configs": [
        {
            "config_name": "de",
            "data_files": [{"split": "train", "path": "de/train*"}, {"split": "test", "path": "de/t*"}],
        },
        {"config_name": "en", "default": True, "data_files": [{"split": "train", "path": ["en/train.jsonl"]}]},
    ]
}


def taken(entry: str, names: list[str], card: Any = None) -> tuple[list[str], str]:
    selection = select(parse_entry(f"hf://datasets/me/set{entry}"), data_names(names), read_subsets(card))
    return list(selection.names), selection.reason


@cases(
    ("entry", "names", "wanted"),
    [
        ("", SPLITS, SPLITS[1:3]),
        ("#test", SPLITS, SPLITS[:1]),
        ("#dev", SPLITS, SPLITS[3:]),
        ("/data", SPLITS, SPLITS[1:3]),
        ("/data#test", SPLITS, SPLITS[:1]),
        ("/data/test-0.parquet", SPLITS, SPLITS[:1]),
        ("/data/train-*.parquet", SPLITS, SPLITS[1:3]),
        ("/**/*-1.parquet", SPLITS, SPLITS[2:3]),
        ("/data/tr[a-b]in-?.parquet", SPLITS, SPLITS[1:3]),
        ("/**", SPLITS, SPLITS),
        ("", ["train/b.csv", "train/a.csv", "test/c.csv"], ["train/a.csv", "train/b.csv"]),
        ("", ["b10.jsonl", "b9.jsonl"], ["b9.jsonl", "b10.jsonl"]),
        ("#train", ["rows.jsonl"], ["rows.jsonl"]),
        ("", ["test.jsonl"], ["test.jsonl"]),
        ("#en", LANGUAGES, ["en/train.jsonl"]),
        ("#en/test", LANGUAGES, ["en/test.jsonl"]),
        ("/en", LANGUAGES, ["en/train.jsonl"]),
        ("", ["a.parquet", "requirements.txt", "config.json"], ["a.parquet"]),
        ("", ["a.jsonl.gz", "README.md", ".cache/b.jsonl.gz", "dataset_infos.json"], ["a.jsonl.gz"]),
    ],
)
def test_files_are_chosen_by_their_names_with_a_reason(entry: str, names: list[str], wanted: list[str]) -> None:
    names_taken, reason = taken(entry, names)
    assert names_taken == wanted
    assert reason.endswith(".")


@cases(("entry", "wanted"), [
    ("", ["en/train.jsonl"]), ("#de", ["de/train.jsonl"]), ("#de/test", ["de/test.jsonl", "de/train.jsonl"]),
    ("#train", ["en/train.jsonl"]), ("/de/test.jsonl", ["de/test.jsonl"]),
])  # fmt: skip
def test_the_card_tells_before_the_names(entry: str, wanted: list[str]) -> None:
    assert taken(entry, LANGUAGES, CARD)[0] == wanted


@cases(
    ("files", "wanted"),
    [
        ("a.csv", {"train": ["a.csv"]}),
        (["a.csv", "./b.csv"], {"train": ["a.csv", "b.csv"]}),
        ({"test": "a.csv"}, {"test": ["a.csv"]}),
        ([{"split": "x", "path": ["https://elsewhere/a.csv", "a.csv"]}], {"x": ["a.csv"]}),
    ],
)
def test_all_ways_of_a_card_to_name_files(files: Any, wanted: dict[str, list[str]]) -> None:
    (subset,) = read_subsets({"configs": [{"config_name": "x", "data_files": files}]})
    assert subset.splits == wanted
    (below,) = read_subsets({"configs": [{"config_name": "x", "data_dir": "sub"}]})
    assert below.splits == {"train": ["sub/**"]}


@cases("card", [None, [], {"configs": 3}, {"configs": [3, {}, {"data_files": [3]}]}, {"configs": None}])
def test_a_card_that_says_nothing_is_left_out(card: Any) -> None:
    assert read_subsets(card) == []


@cases(
    ("entry", "names", "card", "says", "hint"),
    [
        ("", [], None, "no data files", "refs/convert/parquet"),
        ("#prod", SPLITS, None, "no split prod", "test, train, validation"),
        ("", ["test.csv", "validation.csv"], None, "the splits test, validation", "hf://datasets/me/set#test"),
        ("/nowhere", SPLITS, None, "no data file at nowhere", "It has data/test-0.parquet"),
        ("/data/trian-0.parquet", SPLITS, None, "no data file at", "Did you mean data/train-0.parquet"),
        ("/*.csv", SPLITS, None, "matches no data file", "It has"),
        ("", ["a.csv", "b.jsonl"], None, "several kinds (.csv, .jsonl)", "by a path"),
        ("", ["a.json", "b.txt"], None, "several kinds", "by a path"),
        ("", [f"{number}.csv" for number in range(600)], None, "600 files, and 512", "0.csv"),
        ("#fr/train", LANGUAGES, CARD, "no subset fr", "de, en"),
        ("#fr", LANGUAGES, CARD, "no split fr", "train"),
        ("#de/dev", LANGUAGES, CARD, "no split dev", "train, test"),
    ],
)
def test_what_is_not_clear_is_a_sentence(entry: str, names: list[str], card: Any, says: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        taken(entry, names, card)
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_of_several_subsets_one_must_be_named() -> None:
    card = {"configs": [{**CARD["configs"][0]}, {**CARD["configs"][1], "default": False}]}
    with pytest.raises(UserError, match="has the subsets de, en") as caught:
        taken("", LANGUAGES, card)
    assert caught.value.hint == "Name one: hf://datasets/me/set#de."


# A matcher that goes back and forth would take longer than anybody waits.
@pytest.mark.timeout(60)
def test_a_pattern_that_is_made_to_take_long_does_not() -> None:
    name = "a/" * 60 + "b.jsonl"
    card = {"configs": [{"data_files": [{"split": "train", "path": "**/a/" * 50 + "*a*a*a*a*a*a*a*c.jsonl"}]}]}
    with pytest.raises(UserError, match="names no data file"):
        taken("", [name], card)


@cases(
    ("names", "says"),
    [
        (["train.jsonl", "train.jsonl/a.jsonl"], "train.jsonl both as a file and as a directory"),
        (["a/b.json/c/d.json", "a/b.json"], "a/b.json both as a file and as a directory"),
        (["a.jsonl", "b\x00.jsonl"], "which has control characters"),
        (["a.jsonl", "\ud800.jsonl"], "which is no text"),
        (["a.jsonl", "x" * 300 + ".jsonl"], "which is too long"),
        (["a.jsonl", "../b.jsonl"], "which leads out of its directory"),
    ],
)
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

"""Hub URIs in users' spellings, parsed and formatted again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.hub_uri import HubEntry, absolute, is_hub_entry, is_safe_name, make_entry, parse_entry, why_unsafe
from tests.cases import cases, tables

TABLES = tables(__file__)


@cases(
    ("text", "entry"),
    [(text, HubEntry(*parts)) for text, parts in TABLES["entries"]],
)
def test_entries_are_taken_apart(text: str, entry: HubEntry) -> None:
    assert is_hub_entry(text)
    assert parse_entry(text) == entry
    assert parse_entry(str(entry)) == entry
    assert parse_entry(Path(text)) == entry


@cases("text", TABLES["no_entries"])
def test_what_is_no_entry_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_entry(text)
    assert caught.value.hint
    assert "\x1b" not in caught.value.message


@given(st.text(alphabet="hf:/datasetsme.@#%*-_ ~\\\x00é", max_size=40).map(lambda text: f"hf://{text}") | st.text())
def test_any_text_is_an_entry_or_a_sentence(text: str) -> None:
    try:
        entry = parse_entry(text)
    except UserError:
        return
    assert parse_entry(str(entry)) == entry
    assert "/" not in entry.directory_name
    assert not entry.path or is_safe_name(entry.path)


def test_an_entry_is_no_path_and_stays_as_it_is(tmp_path: Path) -> None:
    assert absolute("hf://datasets/me/set/../x", tmp_path) == "hf://datasets/me/set/../x"
    assert absolute("hf:/datasets/me/set", tmp_path) == "hf://datasets/me/set"
    assert absolute("a/../b", tmp_path) == str(tmp_path / "b")
    assert absolute("~nobody-here/x", tmp_path) == str(tmp_path / "~nobody-here" / "x")


def test_entries_of_other_tools() -> None:
    assert str(make_entry("me/set")) == "hf://datasets/me/set"
    made = make_entry("me/set", revision="a/b", path="/sub/", subset="en", split="test")
    assert str(made) == "hf://datasets/me/set@a%2Fb/sub#en/test"
    assert str(make_entry("me/set", split="train", subset=None)) == "hf://datasets/me/set#train"
    for wrong in ({"split": "train[:5%]"}, {"split": "train+test"}, {"subset": 3}, {"path": "../x"}):
        with pytest.raises(UserError):
            make_entry("me/set", **wrong)


@cases(
    ("name", "reason"),
    [
        ("data/train-00000-of-00001.parquet", ""),
        ("日本語/é.jsonl", ""),
        ("a" * 255, ""),
        ("a..b/...c/~", ""),
        *((name, "leads out of its directory") for name in ("", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b")),
        *((name, "has control characters") for name in ("a\0", "a\nb", "\x7f", "\x9b31m")),
        *((name, "is too long") for name in ("a" * 256, "é" * 128, "a/" * 600 + "b")),
        *((name, "is not text") for name in ("\ud800", "a/\udce9.jsonl")),
    ],
)
def test_a_name_is_one_that_a_disk_takes(tmp_path: Path, name: str, reason: str) -> None:
    assert why_unsafe(name) == reason
    assert is_safe_name(name) is not bool(reason)
    if not reason:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve())


@given(st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "\0", "\\", "é"])).map("/".join))
def test_a_safe_name_stays_inside(name: str) -> None:
    if is_safe_name(name):
        assert Path("/root", name).parts[:2] == ("/", "root")
        assert Path("/root", name).parts[2:] == tuple(name.split("/"))
        assert os.path.normpath(f"/root/{name}") == f"/root/{name}"


def test_a_repository_has_a_name_that_directories_can_be_called_by() -> None:
    assert parse_entry(f"hf://{'a' * 63}/{'b' * 96}").repository
    with pytest.raises(UserError, match="names no repository"):
        parse_entry(f"hf://{'a' * 64}/{'b' * 96}")

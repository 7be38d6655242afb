"""Hub store: fetched files, read back after anybody may have changed them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.hub.selection import Subset
from core.hub.store import NotFetchedError, Record, find_fetched, known_commit, note_ref, repository_dir, safe_path
from core.hub_uri import HubEntry
from tests.cases import cases

from .conftest import rows
from .test_hostile_hub import changed, places

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENTRY = HubEntry("dataset", "me/set")


@pytest.fixture
def directory() -> Path:
    """A dataset as it is fetched: two files of a split that its card declares."""
    place = repository_dir(ENTRY) / COMMIT
    (place / "data").mkdir(parents=True)
    names = ["data/a.jsonl", "data/b.jsonl"]
    for name in names:
        (place / name).write_bytes(rows(1))
    subset = Subset("default", True, {"train": ["data/*"]})
    record = Record("me/set", COMMIT, dict.fromkeys(names, len(rows(1))), [subset], frozenset(names))
    (place / "localtune.json").write_text(record.to_json())
    note_ref(ENTRY, COMMIT)
    return place


HOSTILE: list[Any] = [
    *(None, True, -1, 1.5, 1e999, 10**400, "", "x", "../../x", "/etc/passwd", "\x00", "\ud800", [], {}, [[]], [{}]),
    *([None], {"a": 1}, {"../x.jsonl": 3}, {"a.jsonl": "3"}, {"a.jsonl": True}, {"a.jsonl": -1}, {"train": "**"}),
]


def test_no_change_of_a_record_leads_elsewhere(directory: Path) -> None:
    path = directory / "localtune.json"
    truth = json.loads(path.read_text())
    assert [file.name for file in find_fetched(ENTRY).files] == ["a.jsonl", "b.jsonl"]
    for place, _ in places(truth):
        for value in HOSTILE:
            path.write_text(json.dumps(changed(truth, place, value)))
            try:
                found = find_fetched(ENTRY)
            except UserError:
                continue
            assert {file.parent for file in found.files} == {directory / "data"}


@pytest.mark.parametrize("name", ["localtune.json", "refs.json"])
def test_what_is_no_record_is_none(directory: Path, name: str) -> None:
    path = directory / name if name == "localtune.json" else directory.parent / name
    for content in (b"", b"[" * 100_000, b"\xff", b"null", b"[]", b"9" * 5000, b'{"files": '):
        path.write_bytes(content)
        with pytest.raises(NotFetchedError):
            find_fetched(ENTRY)


def test_a_record_that_would_be_waited_for_is_none(directory: Path) -> None:
    for path in (directory / "localtune.json", directory.parent / "refs.json"):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(NotFetchedError):
            find_fetched(HubEntry("dataset", "me/set", COMMIT if path.parent == directory else ""))


def test_a_record_of_another_commit_is_none(directory: Path) -> None:
    directory.rename(directory.with_name("f" * 40))
    with pytest.raises(NotFetchedError):
        find_fetched(HubEntry("dataset", "me/set", "f" * 40))


@cases("commit", ["../../x", "/etc", "", COMMIT.upper(), None, 3, [COMMIT]])
def test_a_reference_to_what_is_no_commit_is_none(directory: Path, commit: Any) -> None:
    (directory.parent / "refs.json").write_text(json.dumps({"main": commit}))
    assert known_commit(ENTRY) == ""


def test_links_are_not_read_through(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_bytes(rows(2))
    (directory / "data" / "a.jsonl").unlink()
    (directory / "data" / "a.jsonl").symlink_to(tmp_path / "other.jsonl")
    with pytest.raises(NotFetchedError, match=r"data/a\.jsonl is missing"):
        find_fetched(ENTRY)
    (directory / "data").rename(tmp_path / "data")
    (directory / "data").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="is a link"):
        find_fetched(ENTRY)


def test_names_lie_below_a_directory_which_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.symlink_to(tmp_path / "real")
    (tmp_path / "real" / "data").mkdir(parents=True)
    assert safe_path(root, "a" * 40, "data/x.jsonl") == root / ("a" * 40) / "data" / "x.jsonl"
    assert safe_path(root, "data") == root / "data"


@cases("target", ["../other", "inside", "nowhere", "link", "../root/inside", "/"])
def test_a_link_below_it_is_refused_wherever_it_leads(tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(target)
    for names in (("link",), ("link", "x.jsonl"), ("link/x/y.jsonl",)):
        with pytest.raises(UserError, match="is a link") as caught:
            safe_path(root, *names)
        assert str(root) in caught.value.hint


@given(st.lists(st.text(alphabet="a.\\/\0~é\ud800 ", min_size=0, max_size=12), min_size=1, max_size=3))
def test_no_name_leads_outside(names: list[str]) -> None:
    root = Path("/nowhere/root")
    try:
        path = safe_path(root, *names)
    except UserError:
        return
    assert path.is_relative_to(root)
    assert path != root
    assert ".." not in path.parts

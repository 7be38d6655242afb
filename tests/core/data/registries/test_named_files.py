"""Files named by other tools' registries: in their directory, elsewhere, through links, and in downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import paths
from core.data.registries.resolve import resolve_source
from core.data.registries.source import DataSource
from core.errors import UserError
from core.hub_uri import HubEntry
from core.models.find import hub_cache_dir
from tests.cases import cases

ROW = '{"instruction": "q", "input": "", "output": "a"}\n'


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return directory_in(tmp_path)


def directory_in(tmp_path: Path) -> Path:
    """A directory of the user's with a data file in it, and another one beside it."""
    directory = tmp_path / "own"
    (directory / "data").mkdir(parents=True)
    (directory / "rows.jsonl").write_text(ROW)
    (directory / "data" / "rows.jsonl").write_text(ROW)
    (tmp_path / "elsewhere.jsonl").write_text(ROW)
    return directory


def llama_factory(directory: Path, file_name: str) -> list[DataSource]:
    registry = directory / "dataset_info.json"
    registry.write_text(json.dumps({"set": {"file_name": file_name}}))
    return resolve_source(f"{registry}#set")


def axolotl(directory: Path, path: str, **more: Any) -> list[DataSource]:
    registry = directory / "run.yml"
    registry.write_text(yaml.safe_dump({"datasets": [{"path": path, "type": "alpaca", **more}]}))
    return resolve_source(str(registry))


READERS = cases("read", [llama_factory, axolotl])


@READERS
@cases("name", ["rows.jsonl", "data/rows.jsonl", "data", "data/../rows.jsonl"])
def test_a_file_beside_the_registry_needs_no_word(tmp_path: Path, read: Any, name: str) -> None:
    own = directory_in(tmp_path)
    (source,) = read(own, name)
    assert source.note == ""


@READERS
@cases("form", ["absolute", "upward", "link", "linked directory"])
def test_a_file_elsewhere_is_said_with_the_rows(tmp_path: Path, read: Any, form: str) -> None:
    own = directory_in(tmp_path)
    elsewhere = own.parent / "elsewhere.jsonl"
    (own / "link.jsonl").symlink_to(elsewhere)
    (own / "linked").symlink_to(own.parent)
    name = {
        "absolute": str(elsewhere),
        "upward": "../elsewhere.jsonl",
        "link": "link.jsonl",
        "linked directory": "linked/elsewhere.jsonl",
    }[form]
    (source,) = read(own, name)
    with source.open() as file:
        reason = source.detect(file.rows(0, 9)).reason
    assert reason.endswith(f"names a file outside of its directory: {elsewhere}.")


def test_each_of_several_files_is_looked_at(own: Path) -> None:
    sources = axolotl(own, "json", data_files=["rows.jsonl", "../elsewhere.jsonl"])
    assert [bool(source.note) for source in sources] == [False, True]


@READERS
@cases("place", ["dataset", "cache"])
def test_a_registry_that_was_downloaded_reaches_only_what_came_with_it(
    tmp_path: Path, read: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = directory_in(tmp_path)
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(own.parent / "hub"))
    root = paths.datasets_dir() / "me--set" if place == "dataset" else hub_cache_dir() / "datasets--me--set"
    directory = root / "snapshots" / "a"
    (root / "blobs").mkdir(parents=True)
    directory.mkdir(parents=True)
    (root / "blobs" / "1").write_text(ROW)
    (root.parent / "other.jsonl").write_text(ROW)
    # As the cache of the hub keeps its files.
    (directory / "rows.jsonl").symlink_to("../../blobs/1")
    (source,) = read(directory, "rows.jsonl")
    assert source.note == ""
    (directory / "link.jsonl").symlink_to(own.parent / "elsewhere.jsonl")
    for name in (str(own.parent / "elsewhere.jsonl"), "../../../other.jsonl", "link.jsonl", "/etc/passwd"):
        with pytest.raises(UserError, match="did not come with the download") as caught:
            read(directory, name)
        assert "Copy the registry" in caught.value.hint


def test_a_link_to_a_registry_that_was_downloaded_is_one(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(own.parent / "hub"))
    directory = hub_cache_dir() / "datasets--me--set"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text(json.dumps({"set": {"file_name": "rows.jsonl"}}))
    (own / "dataset_info.json").symlink_to(directory / "dataset_info.json")
    with pytest.raises(UserError, match="did not come with the download"):
        resolve_source(f"{own / 'dataset_info.json'}#set")


@READERS
@cases("name", ["a\x00.jsonl", "x" * 5000, "a/" * 3000, "\ud800"])
def test_a_name_that_no_file_has_is_a_sentence(tmp_path: Path, read: Any, name: str) -> None:
    own = directory_in(tmp_path)

    def opened() -> None:
        for source in read(own, name):
            source.open()

    with pytest.raises(UserError) as caught:
        opened()
    assert str(caught.value).isprintable()


def test_a_split_is_no_path(own: Path) -> None:
    with pytest.raises(UserError, match="a part of one"):
        axolotl(own, "data", split="../data")


def test_entries_of_a_hub_are_not_looked_at(own: Path) -> None:
    with pytest.raises(UserError, match="is not on this machine"):
        axolotl(own, str(HubEntry("dataset", "me/set")))

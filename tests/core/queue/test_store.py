from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from core import atomic
from core.errors import UserError
from core.queue import store
from core.queue.entry import QueueEntry
from tests.cases import cases
from tests.core.queue.helpers import add, config_for, fill, states
from tests.small_disk import small_disk


def test_an_entry_keeps_its_configuration_whatever_becomes_of_the_file(home: Path) -> None:
    assert store.read_queue().entries == ()
    assert not home.exists(), "a queue that was never used makes no files"
    (entry,) = add("a", train={"learning_rate": 3e-4})
    assert store.read_entry_config(entry) == config_for(train={"learning_rate": 3e-4})
    assert store.config_path(entry.id).stat().st_mode & 0o777 == 0o600
    data = json.loads(store.queue_path().read_text(encoding="utf-8"))
    assert data["entries"][0]["name"] == "a"


def test_variants_of_a_sweep_have_one_id_and_the_next_sweep_another(home: Path) -> None:
    config = config_for()
    for number in (1, 2):
        added = store.add([(QueueEntry(id=1, name="a"), config)] * 2, is_sweep=True)
        assert {entry.sweep for entry in added} == {f"s{number}"}
    assert len(store.read_queue().of_sweep("s2")) == 2


def test_clearing_takes_what_has_ended_with_its_configuration(home: Path) -> None:
    first, second, third = add("a", "b", "c")
    store.change(lambda queue: queue.removed(first.id))
    store.change(lambda queue: queue.with_entry(queue.entry(second.id).moved("skipped")))
    assert store.clear() == 1
    assert states() == {third.id: "waiting"}
    assert [path.name for path in sorted(store.queue_path().parent.glob("*.toml"))] == [f"{third.id}.toml"]


ENTRY = '{"format": 1, "next_id": 2, "entries": [{"id": 1, "name": "a", "state": "waiting", "added": 1e400}]}'


@cases("text", ["", '{"format": 1, "entries": [{"id"', "[" * 100_000, "\ud800", ENTRY])
def test_a_torn_file_is_reported_and_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    add("a")
    raw = text.encode("utf-8", "surrogatepass")
    store.queue_path().write_bytes(raw)
    for action in (lambda: add("b"), store.clear, store.read_queue, lambda: store.change(lambda queue: queue.held(1))):
        with pytest.raises(UserError, match="cannot be read from"):
            action()
    assert store.queue_path().read_bytes() == raw


def test_a_full_disk_leaves_the_queue_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        monkeypatch.setenv("LOCALTUNE_HOME", str(disk / "home"))
        add("a")
        fill(disk / "filler")
        before = sorted(path.name for path in store.queue_path().parent.iterdir())
        with pytest.raises(UserError, match="cannot be written"):
            add("b")
        with pytest.raises(UserError, match="cannot be written"):
            store.change(lambda queue: queue.held(1))
        assert states() == {1: "waiting"}
        assert sorted(path.name for path in store.queue_path().parent.iterdir()) == before


def test_an_entry_always_has_its_configuration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = atomic.fsync_dir

    def fail(path: Path) -> None:
        real(path)
        if store.queue_path().exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "fsync_dir", fail)
        with pytest.raises(UserError, match="cannot be written"):
            add("a")
    (entry,) = store.read_queue().entries
    assert store.read_entry_config(entry).model.base == "/models/base"


def test_a_queue_that_could_not_be_read_again_is_not_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("a")
    monkeypatch.setattr(store, "LIMIT", 4096)
    with pytest.raises(UserError, match="would be larger than"):
        add(*"abcdefgh" * 4)
    assert states() == {1: "waiting"}
    assert [path.name for path in home.rglob("*.toml")] == ["1.toml"]


def test_names_of_files_that_are_no_text_are_shown_safely_or_refused(home: Path) -> None:
    entry = QueueEntry(id=1, name="t\udcff", source="/rows/t\udcff.toml", added=1.0)
    store.add([(entry, config_for())])
    (added,) = store.read_queue().entries
    assert f"{added.name} {added.source}".isprintable()
    before = store.queue_path().read_bytes()
    with pytest.raises(UserError, match=r"a name that is no UTF-8 text: .*data\.train=/") as error:
        store.add([(replace(entry, overrides=("data.train=/\udcff",)), config_for())])
    assert len(error.value.message) < 200
    assert store.queue_path().read_bytes() == before
    assert [path.name for path in home.rglob("*.toml")] == ["1.toml"]


def test_changes_from_several_places_at_once_are_all_kept(home: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: add(str(number), "x"), range(8)))
    entries = store.read_queue().entries
    assert [entry.id for entry in entries] == list(range(1, 17))
    assert {entry.name for entry in entries} == {*map(str, range(8)), "x"}

"""Run directories: files, names, labels, sockets and hints."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.atomic import write_atomic
from core.errors import UserError
from core.runs.record import events, store
from core.runs.record import store as sockets
from core.runs.record.state import RunState
from tests.cases import cases
from tests.core.runs.helpers import add_checkpoint, config_for
from tests.examples import examples
from tests.tui.harness import FORBIDDEN, HOSTILE


def test_a_new_run_is_private_queued_and_carries_its_configuration(home: Path) -> None:
    config = config_for(home)
    run = store.create_run(config, "Support Tickets, v2")
    assert re.fullmatch(r"\d{8}-\d{6}-support-tickets-v2", run.id)
    assert store.Run(home / "20240229-235959-tickets").created == datetime(2024, 2, 29, 23, 59, 59)
    assert store.Run(home / "renamed").created is None
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in run.path.iterdir()} == {0o600}
    assert run.config() == config
    state = run.state()
    assert state.state == "queued"
    assert abs(state.updated - time.time()) < 60


SLUGS = {"a/b../c": "a-b-c", "": "run", "日本": "run", "x" * 99: "x" * 32, "-a-": "a", "a" * 31 + "-b": "a" * 31}


@cases(("name", "slug"), SLUGS.items())
def test_slugs_are_plain(name: str, slug: str) -> None:
    assert store.make_slug(name) == slug


def test_two_runs_of_one_second_get_different_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 40
    runs = [store.create_run(config_for(home), long) for _ in range(3)]
    assert len({run.id for run in runs}) == 3
    # Where the home is deep, the socket lies elsewhere under a short name: that must differ as well.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    deep = [store.Run(Path("/" + "d" * 90) / run.id) for run in runs] + [
        store.Run(Path("/" + "e" * 90) / run.id) for run in runs
    ]
    assert len({run.socket_path for run in deep}) == 6
    assert all(run.socket_path.parent == Path("/run/user/1") for run in deep)
    assert all(len(os.fsencode(run.socket_path)) <= sockets.SOCKET_PATH_LIMIT for run in deep)
    assert runs[0].socket_path == runs[0].path / "control.sock"


def make(home: Path, *names: str) -> None:
    for name in names:
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "run.toml").touch()


def test_runs_are_listed_newest_first_and_strangers_left_out(home: Path) -> None:
    assert store.list_runs() == []
    make(home, "20250101-000000-b", "20260101-000000-a", "20240101-000000-c")
    (home / "runs" / "half").mkdir()
    (home / "runs" / "file").touch()
    assert [run.id[:4] for run in store.list_runs()] == ["2026", "2025", "2024"]


def test_a_run_is_found_by_what_a_user_types(home: Path) -> None:
    with pytest.raises(UserError, match="no runs yet"):
        store.find_run("latest")
    make(home, "20250101-000000-tickets", "20260101-000000-tickets", "20260102-000000-mails")
    assert store.find_run("latest").id == "20260102-000000-mails"
    assert store.find_run("mails").id == "20260102-000000-mails"
    assert store.find_run("2025").id == "20250101-000000-tickets"
    assert store.find_run("20260101-000000-tickets").id == "20260101-000000-tickets"
    assert store.find_run(str(home / "runs" / "20250101-000000-tickets")).id == "20250101-000000-tickets"
    with pytest.raises(UserError, match="could mean 2 runs"):
        store.find_run("tickets")
    for run, name in zip(store.list_runs(), ("More data", "20260102"), strict=False):
        store.write_labels(run.path, store.Labels(name=name))
    assert store.find_run("more data").id == "20260102-000000-mails"
    assert store.find_run("20260102").id == "20260102-000000-mails", "an id comes before a display name"
    with pytest.raises(UserError, match="no run called nothing"):
        store.find_run("nothing")


def test_a_run_without_a_readable_state_is_lost(run: store.Run) -> None:
    run.state_path.write_text("{")
    assert run.state().state == "lost"
    run.state_path.unlink()
    assert "missing or unreadable" in run.state().reason


def test_a_home_that_cannot_be_used_is_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("LOCALTUNE_HOME", str(home / "file"))
    with pytest.raises(UserError) as caught:
        store.create_run(config_for(home), "x")
    assert str(home / "file") in caught.value.message
    assert "LOCALTUNE_HOME" in caught.value.hint


def test_a_full_disk_leaves_no_half_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path, data: str | bytes, *, mode: int = 0o600, durable: bool = True) -> None:
        if path.name == "state.json":
            raise OSError(28, "No space left on device")
        write_atomic(path, data, mode=mode, durable=durable)

    monkeypatch.setattr("core.runs.record.state.write_atomic", no_space)
    with pytest.raises(UserError, match="No space left on device"):
        store.create_run(config_for(home), "x")
    assert list((home / "runs").iterdir()) == []


def dead_run(home: Path, *told: events.Event, updated: float = 100.0) -> store.Run:
    """A run whose worker is gone, with its events."""
    run = store.create_run(config_for(home), "tickets")
    RunState(state="training", pid=2**22 + 1, pid_started="x/1", step=3, updated=updated).write(run.state_path)
    run.events_path.write_text("".join(map(events.encode_event, told)))
    return run


@cases("kind", [events.FinishedEvent, events.StoppedEvent, events.FailedEvent])
def test_an_end_that_only_the_record_tells_is_the_end(home: Path, kind: type[events.FinishedEvent]) -> None:
    end = kind(t=101.0, reason="the disk is \x1b full", step=3)
    run = dead_run(home, events.HardwareEvent(t=99.0, devices=[]), end, events.HardwareEvent(t=102.0, devices=[]))
    state = run.state()
    assert (state.state, state.step, state.is_over) == (kind.type, 3, True)
    assert state.reason == "the disk is \ufffd full"


def test_an_end_counts_only_where_it_is_the_last_word_of_the_worker(home: Path) -> None:
    end = events.FailedEvent(t=101.0, reason="no space", step=3)
    assert dead_run(home, end, events.PhaseEvent(t=105.0, name="importing")).state().state == "lost"
    # A later worker has left a later heartbeat.
    assert dead_run(home, end, updated=110.0).state().state == "lost"
    assert dead_run(home).state().state == "lost"
    half = dead_run(home)
    half.events_path.write_text(events.encode_event(end).rstrip())
    assert half.state().state == "lost"
    half.events_path.write_text(events.encode_event(end))
    assert half.state().state == "failed", "its last line is whole now"


def test_labels_come_back_as_they_were_written(run: store.Run) -> None:
    labels = store.Labels("more data", ("keep", "déjà-vu"), "best so far, 好", archived=True)
    store.write_labels(run.path, labels)
    assert store.read_labels(run.path) == labels
    assert store.labels_path(run.path).stat().st_mode & 0o777 == 0o600
    store.write_labels(run.path, store.NO_LABELS)
    assert not store.labels_path(run.path).exists()
    assert store.read_labels(run.path) == store.NO_LABELS


@cases(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"name": 3, "tags": "keep", "note": [], "archived": "yes"}',
        b'{"tags": ["two words", "", null, "a,b", {}]}',
        b'{"name": "' + b"x" * store.LABELS_LIMIT + b'"}',
    ],
)
def test_a_file_that_makes_no_sense_has_no_labels(run: store.Run, content: bytes) -> None:
    store.labels_path(run.path).write_bytes(content)
    assert store.read_labels(run.path) == store.NO_LABELS
    store.labels_path(run.path).unlink()
    os.mkfifo(store.labels_path(run.path))
    assert store.read_labels(run.path) == store.NO_LABELS, "a pipe is not waited for"
    store.labels_path(run.path).unlink()


@settings(max_examples=examples(25))
@given(
    st.dictionaries(
        st.sampled_from(["name", "tags", "note", "archived"]), st.text() | st.lists(st.text()) | st.booleans()
    )
)
def test_whatever_a_file_says_is_safe_to_show_and_short(values: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        store.labels_path(path).write_text(json.dumps({**values, "extra": HOSTILE}), encoding="utf-8")
        labels = store.read_labels(path)
        assert len(labels.name) <= store.NAME_LIMIT
        assert len(labels.note) <= store.NOTE_LIMIT
        assert len(labels.tags) <= store.MOST_TAGS
        assert all(0 < len(tag) <= store.TAG_LIMIT and tag.split() == [tag] for tag in labels.tags)
        shown = labels.name + labels.note + "".join(labels.tags)
        assert not FORBIDDEN & set(shown)
        assert "\n" not in shown
        # Labels that were read are written and read again unchanged.
        store.write_labels(path, labels)
        assert store.read_labels(path) == labels


def test_tags_are_words_each_once() -> None:
    assert store.clean_tags(["#keep, try", "keep", " x "]) == ("keep", "try", "x")
    with pytest.raises(UserError, match="is no tag"):
        store.clean_tags(["x" * (store.TAG_LIMIT + 1)])
    with pytest.raises(UserError, match="17 tags"):
        store.clean_tags([f"t{number}" for number in range(store.MOST_TAGS + 1)])


@cases(("mode", "private"), [(0o700, True), (0o500, True), (0o750, False), (0o701, False), (0o777, False)])
def test_a_directory_is_private_when_it_is_nobody_elses(tmp_path: Path, mode: int, private: bool) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    assert sockets.is_private(place) is private
    (tmp_path / "link").symlink_to(place)
    assert not sockets.is_private(tmp_path / "link")
    assert not sockets.is_private(tmp_path / "none")
    if os.getuid() == 0:
        os.chown(place, 65534, 65534)
        assert not sockets.is_private(place)


def test_a_writable_run_directory_holds_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    inside = tmp_path / "run" / "s"
    assert sockets.private_socket_path(inside) == inside
    inside.parent.chmod(0o777)
    made = sockets.private_socket_path(inside)
    assert made.parent != inside.parent
    assert sockets.is_private(made.parent)
    assert made.parent in sockets.made_directories()
    made.parent.rmdir()


def test_where_no_directory_can_be_made_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_socket_places", lambda: [tmp_path / ("x" * 90)])
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(PermissionError, match="not this user's alone"):
        sockets.private_socket_path(tmp_path / "run" / "s")


def test_a_run_is_continued_from_a_checkpoint_and_started_again_without_one(run: store.Run) -> None:
    assert store.way_on(run) == f"It saved no checkpoint; {store.start_again(run)}."
    add_checkpoint(run)
    assert store.way_on(run) == f"'localtune-tui continue {run.id}' goes on from its last checkpoint."


def test_the_command_can_be_pasted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(home / "a b"))
    spaced = store.create_run(config_for(home), "tickets")
    assert not store.complete_checkpoints(spaced)
    assert f"localtune-tui train '{spaced.config_path}'" in store.way_on(spaced)


def test_a_secret_in_the_name_of_a_run_is_not_in_its_id(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "plain-horse-4711")
    assert store.create_run(config_for(home), "run-plain-horse-4711").id.endswith("-run")

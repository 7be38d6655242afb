"""Run directories: files, names, labels, sockets and hints."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.helper import finding_core
from core.launch import launcher
from core.runs.record import chain as chain_module
from core.runs.record import events, store
from core.runs.record.chain import CHAIN_NAME, Chain, chain_head, seal_events
from core.runs.record.events import NoticeEvent
from core.runs.record.state import EventTail, RunState
from core.runs.record.store import Run
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
    assert all(len(os.fsencode(run.socket_path)) <= store.SOCKET_PATH_LIMIT for run in deep)
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
def test_an_end_that_only_the_record_shows_is_the_end(home: Path, kind: type[events.FinishedEvent]) -> None:
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
    assert store.is_private(place) is private
    (tmp_path / "link").symlink_to(place)
    assert not store.is_private(tmp_path / "link")
    assert not store.is_private(tmp_path / "none")
    if os.getuid() == 0:
        os.chown(place, 65534, 65534)
        assert not store.is_private(place)


def test_a_writable_run_directory_holds_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    inside = tmp_path / "run" / "s"
    assert store.private_socket_path(inside) == inside
    inside.parent.chmod(0o777)
    made = store.private_socket_path(inside)
    assert made.parent != inside.parent
    assert store.is_private(made.parent)
    assert made.parent in store.made_directories()
    made.parent.rmdir()
    monkeypatch.setattr(store, "_socket_places", lambda: [tmp_path / ("x" * 90)])
    with pytest.raises(PermissionError, match="not this user's alone"):
        store.private_socket_path(inside)


def test_a_run_is_continued_from_a_checkpoint_and_started_again_without_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(home / "a b"))
    run = store.create_run(config_for(home), "tickets")
    assert store.way_on(run) == f"It saved no checkpoint; {store.start_again(run)}."
    assert f"localtune-tui train '{run.config_path}'" in store.way_on(run)
    add_checkpoint(run)
    assert store.way_on(run) == f"'localtune-tui continue {run.id}' goes on from its last checkpoint."


def test_a_secret_in_the_name_of_a_run_is_not_in_its_id(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "plain-horse-4711")
    assert store.create_run(config_for(home), "run-plain-horse-4711").id.endswith("-run")


MINE = '{"editor": "mine"}\n{"keep": "this"}'


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file of the user's outside of the run."""
    path = tmp_path / "settings.json"
    path.write_text(MINE)
    return path


def end(run: Run) -> None:
    """Let a run have been stopped after its first checkpoint."""
    add_checkpoint(run)
    RunState(state="stopped", step=3, total_steps=9).write(run.state_path)


def own_run(directory: Path) -> Run:
    """An empty run directory, for a case of a table."""
    (directory / "run").mkdir()
    return Run(directory / "run")


ODD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "link": (lambda path, mine: path.symlink_to(mine), "it is a link"),
    "hard link": (lambda path, mine: os.link(mine, path), "it is a hard link"),
    "pipe": (lambda path, _: os.mkfifo(path), "it is a named pipe"),
    "link to a directory": (lambda path, mine: path.symlink_to(mine.parent), "it is a link"),
}
PLACES = [
    "chain.jsonl", "events.jsonl", "ranks.json", "worker-rank1.log", ".adapter.77.old.tmp", "tracking",
    "tracking/tensorboard", "tracking/tensorboard/events.out.tfevents.0000000000.localtune", "tracking/wandb/wandb/x",
    "chats", "adapter/adapter_model.safetensors", "checkpoints/step-00000003/optimizer.pt", "checkpoints/step-00000004",
]  # fmt: skip


@cases("kind", ODD)
@cases("place", PLACES)
def test_an_unsafe_file_is_refused_and_named(tmp_path: Path, run: Run, mine: Path, kind: str, place: str) -> None:
    own = own_run(tmp_path)
    for path in (run.config_path, run.state_path):
        (own.path / path.name).write_bytes(path.read_bytes())
    end(own)
    store.refuse_unsafe_files(own)
    path = own.path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    make, reason = ODD[kind]
    make(path, mine)
    before = RunState.read(own.state_path)
    for action in (store.refuse_unsafe_files, launcher.continue_run, launcher.launch):
        with pytest.raises(UserError, match=reason) as caught:
            action(own)
        assert str(path) in caught.value.message
        assert caught.value.hint
    assert RunState.read(own.state_path) == before
    assert mine.read_text() == MINE


def test_one_directory_of_a_run_may_be_looked_at_alone(run: Run, mine: Path) -> None:
    store.refuse_unsafe_files(run, "tracking")
    (run.path / "elsewhere").symlink_to(mine)
    store.refuse_unsafe_files(run, "tracking")
    (run.path / "tracking").symlink_to(mine.parent)
    with pytest.raises(UserError, match="tracking is not written to: it is a link"):
        store.refuse_unsafe_files(run, "tracking")


def test_a_run_that_was_made_here_is_taken(run: Run) -> None:
    end(run)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run.path / "control.sock"))
        data = run.path / "tracking" / "wandb" / "wandb"
        (data / "offline-run-1" / "logs").mkdir(parents=True)
        (data / "offline-run-1" / "logs" / "debug.log").touch()
        (data / "latest-run").symlink_to("offline-run-1")
        (data / "debug.log").symlink_to("offline-run-1/logs/debug.log")
        store.refuse_unsafe_files(run)
        store.refuse_unsafe_files(run, "tracking")
        (data / "out").symlink_to("../../../run.toml")
        for below in ("", "tracking"):
            with pytest.raises(UserError, match="out is not written to: it is a link"):
                store.refuse_unsafe_files(run, below)


def test_a_worker_that_is_started_by_hand_refuses_it_too(run: Run, mine: Path) -> None:
    end(run)
    (run.path / CHAIN_NAME).symlink_to(mine)
    command, environment = [sys.executable, "-m", "core.worker", str(run.path), "--resume"], finding_core(os.environ)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 4
    assert "chain.jsonl is not written to: it is a link" in ended.stdout + ended.stderr
    assert mine.read_text() == MINE
    assert run.state().state == "failed"
    assert "chain.jsonl is not written to: it is a link" in run.state().reason


@cases("kind", ODD)
def test_events_and_chain_are_appended_to_own_files_alone(tmp_path: Path, run: Run, mine: Path, kind: str) -> None:
    own = own_run(tmp_path)
    run.events_path.touch()
    for path in (own.events_path, own.path / CHAIN_NAME):
        ODD[kind][0](path, mine)
    with pytest.raises(OSError, match=ODD[kind][1]):
        Chain(own.path, run.events_path).append("start", {})
    assert not (mine.parent / CHAIN_NAME).exists()
    with pytest.raises(UserError, match=ODD[kind][1]):
        store.append_events(own, NoticeEvent(level="info", code="x", message="y"))
    assert mine.read_text() == MINE


@cases("line", [b'{"n": 1e999, "link": "", "events": {"to": 0}}', b'{"n": 0, "link": "", "events": {"to": -7}}',
                b'{"n": 9223372036854775807, "link": "", "events": {"to": 9223372036854775807}}', b"[" * 100_000,
                b'{"n": ' + b"9" * 4000 + b"}"])  # fmt: skip
def test_a_chain_goes_on_after_any_line(tmp_path: Path, run: Run, line: bytes) -> None:
    (tmp_path / CHAIN_NAME).write_bytes(line + b"\n")
    (tmp_path / "events.jsonl").write_text("{}\n")
    Chain(tmp_path, tmp_path / "events.jsonl").append("start", {})
    assert (tmp_path / CHAIN_NAME).read_bytes().startswith(line + b"\n")
    added = json.loads((tmp_path / CHAIN_NAME).read_bytes().splitlines()[1])
    assert (added["n"], added["events"]["from"]) == (1, 0)


def test_a_record_of_line_breaks_is_sealed_in_parts(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "SEALED_LINES", 100)
    run.events_path.write_bytes(b"\n" * 250)
    assert seal_events(run.events_path, 0)["to"] == 100
    chain = Chain(run.path, run.events_path)
    for kind in ("start", "checkpoint", "end"):
        chain.append(kind, {})
    links = list(chain_module.read_links(run.path / CHAIN_NAME))
    assert [link.events.end for link in links if isinstance(link, chain_module.Link)] == [100, 200, 250]
    assert chain_head(run.path) is not None


# Checkpoints on another disk.


def move(run: Run, disk: Path) -> Path:
    """Checkpoints moved to another disk, and a link to them."""
    target = disk / "moved"
    disk.mkdir(exist_ok=True)
    run.checkpoints_path.rename(target)
    run.checkpoints_path.symlink_to(target)
    return target


def test_checkpoints_that_were_moved_are_used_once_the_user_has_said_so(tmp_path: Path, run: Run) -> None:
    end(run)
    target = move(run, tmp_path / "disk")
    with pytest.raises(UserError, match=r"is a link to .*moved, and old checkpoints are deleted there") as caught:
        launcher.continue_run(run)
    assert caught.value.hint == f"If you have moved them there: localtune-tui continue {run.id} --checkpoints {target}"
    with pytest.raises(UserError, match="not to /tmp"):
        store.confirm_checkpoints(run, Path("/tmp"))
    (tmp_path / "other-name").symlink_to(target)
    store.confirm_checkpoints(run, tmp_path / "other-name")
    store.refuse_unsafe_files(run)
    assert (paths.moved_dir() / f"{run.id}.json").stat().st_mode & 0o777 == 0o600
    # Files there belong to the run.
    (target / "step-00000009").symlink_to(tmp_path)
    with pytest.raises(UserError, match="step-00000009 is not written to: it is a link"):
        store.refuse_unsafe_files(run)


def test_what_was_confirmed_is_one_directory_for_one_run(tmp_path: Path, run: Run) -> None:
    end(run)
    target = move(run, tmp_path / "disk")
    store.confirm_checkpoints(run, target)
    # A run from elsewhere with the same id and link, in another place.
    other = Run(tmp_path / run.id)
    other.path.mkdir()
    other.checkpoints_path.symlink_to(target)
    with pytest.raises(UserError, match="is a link to"):
        store.refuse_moved_checkpoints(other)
    # The target of the link is a link to another directory now.
    (tmp_path / "elsewhere").mkdir()
    target.rename(tmp_path / "disk" / "real")
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is a link to .*elsewhere"):
        store.refuse_moved_checkpoints(run)


def test_a_damaged_record_confirms_nothing(tmp_path: Path, run: Run) -> None:
    run.checkpoints_path.symlink_to("/")
    record = paths.make_private_dir(paths.moved_dir()) / f"{run.id}.json"
    for content in ("", "[]", "{}", '{"run": 5}', "[" * 100_000, '{"run": "x", "checkpoints": "/"}', "\ud800"):
        record.write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match="is a link to /, "):
            store.refuse_moved_checkpoints(run)
    run.checkpoints_path.unlink()
    os.mkfifo(run.checkpoints_path)
    with pytest.raises(UserError, match="checkpoints is not written to: it is a named pipe"):
        store.refuse_unsafe_files(run)


def test_checkpoints_that_are_no_link_or_lead_nowhere_are_not_confirmed(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UserError, match="is not a link"):
        store.confirm_checkpoints(run, tmp_path)
    run.checkpoints_path.symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"There is no directory .*unmounted"):
        store.confirm_checkpoints(run, tmp_path / "unmounted")


NOTICE = NoticeEvent(level="warning", code="hot", message="It is hot.", hint="")


@pytest.fixture
def record(run: Run) -> Iterator[int]:
    """The record, open as in its worker."""
    descriptor = os.open(run.events_path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def told(run: Run) -> int:
    return len(list(EventTail(run.events_path).read_all()))


def test_a_line_that_a_kill_cut_short_is_ended_first(run: Run) -> None:
    run.events_path.write_bytes(b'{"type": "not')
    store.append_events(run, NOTICE, NOTICE)
    assert run.events_path.read_bytes().startswith(b'{"type": "not\n{')
    assert told(run) == 2


def test_nothing_comes_into_a_record_that_is_being_closed_or_after_the_end(run: Run, record: int) -> None:
    RunState(state="training").write(run.state_path)
    with store.closing_record(record):
        assert not store.append_while_open(run, NOTICE)
    assert told(run) == 0
    for state, added in (("training", True), ("paused", True), ("finished", False)):
        RunState(state=state).write(run.state_path)
        assert store.append_while_open(run, NOTICE) is added
    assert told(run) == 2


def test_a_process_that_was_forked_meanwhile_keeps_no_record_closed(run: Run, record: int) -> None:
    with store.closing_record(record):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[record])
    try:
        assert store.append_while_open(run, NOTICE)
    finally:
        child.communicate(b"\n")


def test_an_end_is_recorded_without_locks(run: Run) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with store.closing_record(writing):
        store.append_events(run, NOTICE)
    assert told(run) == 1

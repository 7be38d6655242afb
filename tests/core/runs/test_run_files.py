"""A run directory from elsewhere, before anything is written in it; checkpoints on another disk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from core.helper import finding_core
from core.launch import launcher
from core.runs.record import chain as chain_module
from core.runs.record import files
from core.runs.record.chain import CHAIN_NAME, Chain, chain_head, seal_events
from core.runs.record.events import NoticeEvent
from core.runs.record.state import EventTail, RunState
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.runs.helpers import add_checkpoint

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
    files.refuse_unsafe_files(own)
    path = own.path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    make, reason = ODD[kind]
    make(path, mine)
    before = RunState.read(own.state_path)
    for action in (files.refuse_unsafe_files, launcher.continue_run, launcher.launch):
        with pytest.raises(UserError, match=reason) as caught:
            action(own)
        assert str(path) in caught.value.message
        assert caught.value.hint
    assert RunState.read(own.state_path) == before
    assert mine.read_text() == MINE


def test_one_directory_of_a_run_may_be_looked_at_alone(run: Run, mine: Path) -> None:
    files.refuse_unsafe_files(run, "tracking")
    (run.path / "elsewhere").symlink_to(mine)
    files.refuse_unsafe_files(run, "tracking")
    (run.path / "tracking").symlink_to(mine.parent)
    with pytest.raises(UserError, match="tracking is not written to: it is a link"):
        files.refuse_unsafe_files(run, "tracking")


def test_a_run_that_was_made_here_is_taken(run: Run) -> None:
    end(run)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run.path / "control.sock"))
        data = run.path / "tracking" / "wandb" / "wandb"
        (data / "offline-run-1" / "logs").mkdir(parents=True)
        (data / "offline-run-1" / "logs" / "debug.log").touch()
        (data / "latest-run").symlink_to("offline-run-1")
        (data / "debug.log").symlink_to("offline-run-1/logs/debug.log")
        files.refuse_unsafe_files(run)
        files.refuse_unsafe_files(run, "tracking")
        (data / "out").symlink_to("../../../run.toml")
        for below in ("", "tracking"):
            with pytest.raises(UserError, match="out is not written to: it is a link"):
                files.refuse_unsafe_files(run, below)


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
        files.append_events(own, NoticeEvent(level="info", code="x", message="y"))
    assert mine.read_text() == MINE


def test_a_hard_link_is_not_overwritten(tmp_path: Path, run: Run, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.state_path.unlink()
    os.link(mine, run.state_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.runs.record.state.write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        RunState(state="stopped").write(run.state_path)
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
        files.confirm_checkpoints(run, Path("/tmp"))
    (tmp_path / "other-name").symlink_to(target)
    files.confirm_checkpoints(run, tmp_path / "other-name")
    files.refuse_unsafe_files(run)
    assert (paths.moved_dir() / f"{run.id}.json").stat().st_mode & 0o777 == 0o600
    # Files there belong to the run.
    (target / "step-00000009").symlink_to(tmp_path)
    with pytest.raises(UserError, match="step-00000009 is not written to: it is a link"):
        files.refuse_unsafe_files(run)


def test_what_was_confirmed_is_one_directory_for_one_run(tmp_path: Path, run: Run) -> None:
    end(run)
    target = move(run, tmp_path / "disk")
    files.confirm_checkpoints(run, target)
    # A run from elsewhere with the same id and link, in another place.
    other = Run(tmp_path / run.id)
    other.path.mkdir()
    other.checkpoints_path.symlink_to(target)
    with pytest.raises(UserError, match="is a link to"):
        files.refuse_moved_checkpoints(other)
    # The target of the link is a link to another directory now.
    (tmp_path / "elsewhere").mkdir()
    target.rename(tmp_path / "disk" / "real")
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is a link to .*elsewhere"):
        files.refuse_moved_checkpoints(run)


def test_a_damaged_record_confirms_nothing(tmp_path: Path, run: Run) -> None:
    run.checkpoints_path.symlink_to("/")
    record = paths.make_private_dir(paths.moved_dir()) / f"{run.id}.json"
    for content in ("", "[]", "{}", '{"run": 5}', "[" * 100_000, '{"run": "x", "checkpoints": "/"}', "\ud800"):
        record.write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match="is a link to /, "):
            files.refuse_moved_checkpoints(run)
    run.checkpoints_path.unlink()
    os.mkfifo(run.checkpoints_path)
    with pytest.raises(UserError, match="checkpoints is not written to: it is a named pipe"):
        files.refuse_unsafe_files(run)


def test_checkpoints_that_are_no_link_or_lead_nowhere_are_not_confirmed(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UserError, match="is no link"):
        files.confirm_checkpoints(run, tmp_path)
    run.checkpoints_path.symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"There is no directory .*unmounted"):
        files.confirm_checkpoints(run, tmp_path / "unmounted")


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
    files.append_events(run, NOTICE, NOTICE)
    assert run.events_path.read_bytes().startswith(b'{"type": "not\n{')
    assert told(run) == 2


def test_nothing_comes_into_a_record_that_is_being_closed_or_after_the_end(run: Run, record: int) -> None:
    RunState(state="training").write(run.state_path)
    with files.closing_record(record):
        assert not files.append_while_open(run, NOTICE)
    assert told(run) == 0
    for state, added in (("training", True), ("paused", True), ("finished", False)):
        RunState(state=state).write(run.state_path)
        assert files.append_while_open(run, NOTICE) is added
    assert told(run) == 2


def test_a_process_that_was_forked_meanwhile_keeps_no_record_closed(run: Run, record: int) -> None:
    with files.closing_record(record):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[record])
    try:
        assert files.append_while_open(run, NOTICE)
    finally:
        child.communicate(b"\n")


def test_an_end_is_recorded_without_locks(run: Run) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with files.closing_record(writing):
        files.append_events(run, NOTICE)
    assert told(run) == 1

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.atomic import write_atomic
from core.runs.record import state as state_module
from core.runs.record.state import (
    ACTIVE_STATES,
    END_STATES,
    RunState,
    StepProgress,
    hostname,
    infer_state,
    is_same_process,
    own_identity,
    start_identity,
)
from core.text import one_line
from tests.cases import cases
from tests.core.runs.event_strategies import JSON


def live(**changes: object) -> RunState:
    """A state that this very process could have written just now."""
    pid, identity = own_identity()
    state = RunState(state="training", pid=pid, pid_started=identity, host=hostname(), updated=time.time())
    return dataclasses.replace(state, **changes)  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state = live(step=3, total_steps=9, reason="ä", socket="/run/x.sock")
    state.write(tmp_path / "state.json")
    assert RunState.read(tmp_path / "state.json") == state
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state.json"]


@given(
    st.dictionaries(st.sampled_from([item.name for item in dataclasses.fields(RunState)]), JSON, min_size=1)
    | JSON.filter(lambda value: not isinstance(value, dict))
)
def test_a_damaged_state_is_unreadable_or_sound(value: object) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "state.json")
        path.write_text(json.dumps(value))
        state = RunState.read(path)
    if state is not None:
        inferred = infer_state(state)
        assert isinstance(inferred.state, str)
        assert isinstance(inferred.is_over, bool)


@cases(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"state": 5}', b"{}", b'{"state": "\\u001b]52;c;eA==\\u0007"}']
)
def test_an_unreadable_state_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert RunState.read(tmp_path / "state.json") is None
    assert RunState.read(tmp_path / "missing") is None


def test_its_texts_are_safe_to_show(tmp_path: Path) -> None:
    hostile = "\x1b]52;c;eA==\x07\x9b31m\u202e\x00"
    live(state="failed", reason=hostile, host=hostile).write(tmp_path / "state.json")
    state = RunState.read(tmp_path / "state.json")
    assert state is not None
    for text in (state.reason, state.host):
        assert not any(ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0 or letter == "\u202e" for letter in text)


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"state": "training", "from_the_future": 1}')
    assert RunState.read(tmp_path / "state.json") == RunState(state="training")


@cases("state", sorted(ACTIVE_STATES))
def test_a_live_process_keeps_its_state(state: str) -> None:
    assert infer_state(live(state=state)).state == state


@cases("state", sorted(END_STATES))
def test_an_end_is_an_end_whatever_became_of_the_process(state: str) -> None:
    ended = live(state=state, pid=2**22 + 1, updated=0.0)
    assert infer_state(ended) == ended
    assert ended.is_over


def test_a_process_that_is_gone_means_lost() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        state = live(pid=child.pid, pid_started=start_identity(child.pid))
        assert infer_state(state).state == "training"
        child.kill()
        # Not yet waited for: it is a zombie, which trains nothing.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert infer_state(state).state == "lost"
    inferred = infer_state(state)
    assert inferred.state == "lost"
    assert inferred.is_over
    assert str(child.pid) in inferred.reason


def test_a_reused_pid_means_lost() -> None:
    assert infer_state(live(pid_started="another-boot/123")).state == "lost"
    assert infer_state(live(pid_started=None)).state == "lost"


def test_an_old_heartbeat_means_stalled_and_is_not_over() -> None:
    inferred = infer_state(live(updated=time.time() - state_module.STALE_SECONDS - 5))
    assert inferred.state == "stalled"
    assert not inferred.is_over
    assert infer_state(live(), now=math.inf).state == "stalled"


def test_on_another_machine_only_the_heartbeat_tells() -> None:
    assert infer_state(live(host="elsewhere", pid=2**22 + 1)).state == "training"
    assert infer_state(live(host="elsewhere", updated=time.time() - 1000)).state == "stalled"


def test_a_queued_run_that_nobody_starts_is_lost_after_a_while() -> None:
    queued = RunState(state="queued", host=hostname(), updated=1000.0)
    assert infer_state(queued, now=1001.0).state == "queued"
    assert infer_state(queued, now=1000.0 + state_module.QUEUED_SECONDS).state == "lost"
    assert infer_state(dataclasses.replace(queued, state="training"), now=1001.0).state == "lost"


def test_the_identity_of_a_process_tells_it_from_all_others() -> None:
    pid, identity = own_identity()
    assert pid == os.getpid()
    assert identity
    assert is_same_process(pid, identity)
    assert not is_same_process(pid, identity + "1")
    assert not is_same_process(None, identity)
    assert start_identity(2**22 + 1) is None
    with subprocess.Popen(["sleep", "60"]) as child:
        assert start_identity(child.pid) not in (None, identity)
        child.kill()


def test_a_command_name_with_parentheses_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE) as child:
        identity = start_identity(child.pid)
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        child.kill()
    assert identity is not None
    assert identity.endswith("/" + stat.rpartition(")")[2].split()[19])


def test_a_heartbeat_in_the_future_means_stalled() -> None:
    ahead = infer_state(live(updated=time.time() + 2 * 86400))
    assert (ahead.state, ahead.is_over) == ("stalled", False)
    assert ahead.reason == "its last sign of life lies 2d 00h in the future, as if the clock had been set back"
    # Clocks of two machines differ a little.
    assert infer_state(live(updated=time.time() + 5)).state == "training"
    queued = RunState(state="queued", host=hostname(), updated=time.time() + 86400)
    assert infer_state(queued).state == "lost"


@pytest.mark.parametrize("days", [-2, 1])
def test_a_clock_that_was_set_neither_hides_a_hang_nor_makes_one(days: int) -> None:
    jumped = time.time() + days * 86400
    alive = live(updated=jumped, beat=time.monotonic() - 1, step_started=jumped - 3)
    assert infer_state(alive) == alive
    hung = infer_state(dataclasses.replace(alive, beat=time.monotonic() - 45))
    assert hung.state == "stalled"
    assert re.fullmatch(r"no sign of life for 4\d s; step 1 has been running for 4\d s", hung.reason)


def test_a_beat_that_cannot_be_is_none() -> None:
    assert infer_state(live(beat=time.monotonic() + 1000)).state == "training"
    assert infer_state(live(beat=time.monotonic() + 1000, updated=time.time() - 60)).state == "stalled"
    assert infer_state(live(host="elsewhere", beat=time.monotonic() - 1000)).state == "training"


def test_a_long_silence_is_told_in_days() -> None:
    assert infer_state(live(updated=time.time() - 3 * 86400 - 60)).reason == "no sign of life for 3d 00h"


def fill(directory: Path) -> None:
    """Leave no room for another file."""
    with contextlib.suppress(OSError), (directory / "ballast").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


@pytest.mark.skipif(os.getuid() != 0, reason="not run: only root can mount a small disk")
@pytest.mark.parametrize("reason", ["no space", "a long reason " * 100])
def test_an_end_is_written_on_a_full_disk(tmp_path: Path, reason: str) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("not run: nothing can be mounted here")
    try:
        path = tmp_path / "state.json"
        live(reason="r" * 700).write(path)
        fill(tmp_path)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(tmp_path / "other", b"x" * 5000)
        failed = live(state="failed", reason=reason, step=7)
        failed.write(path)
        assert RunState.read(path) == dataclasses.replace(failed, reason=one_line(reason))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def no_second_file(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_does_not_fit_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    before = live(step=3)
    before.write(path)
    monkeypatch.setattr(state_module, "write_atomic", no_second_file)
    live(step=4).write(path)
    read = RunState.read(path)
    assert read is not None
    assert read.step == 4
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:50] if b"five" in data else data, at))
    with pytest.raises(OSError, match="No space left"):
        live(step=5, reason="five").write(path)
    assert RunState.read(path) == read
    with pytest.raises(OSError, match="No space left"):
        live().write(tmp_path / "none" / "state.json")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="No space left"):
        live(step=6).write(tmp_path / "link")
    assert RunState.read(path) == read


@cases(
    ("told", "pending", "progress"),
    [
        ({}, (), None),
        ({"pending": ["stop", "pause", "dance", 3]}, ("pause", "stop"), None),
        ({"pending": "pause", "progress": 3}, (), None),
        ({"progress": {"what": "x\x1b", "done": 1, "total": 8}}, (), StepProgress("x�", 1, 8)),
        ({"progress": {"what": "answers", "done": 9, "total": 8}}, (), None),
        ({"progress": {"what": "answers", "done": 9}}, (), None),
        ({"progress": {"what": "checkpoint", "done": 0, "total": 0}}, (), StepProgress("checkpoint")),
    ],
)
def test_what_a_step_is_at_is_read_or_left_out(
    tmp_path: Path, told: dict[str, object], pending: tuple[str, ...], progress: StepProgress | None
) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"state": "training", **told}))
    state = RunState.read(tmp_path / "state.json")
    assert state is not None
    assert (state.pending, state.progress) == (pending, progress)

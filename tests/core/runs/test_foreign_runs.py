"""Foreign run directories, not written by a worker, through everything that reads them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.commands import progress, runs, watch
from core.commands.common import emit, say
from core.commands.follow import Followed
from core.commands.summary import summarize, summary_lines
from core.config.document import dump_config
from core.errors import UserError
from core.launch.launcher import failure_reason, log_tail
from core.runs.catalog.rows import RunCatalog
from core.runs.outlook import estimate as pace
from core.runs.record import events
from core.runs.record import state as oom
from core.runs.record.history import RunHistory, last_step, read_history
from core.runs.record.state import EventTail
from core.runs.record.store import Run, complete_checkpoints, find_run, list_runs
from core.tracking.forward import figures, step_of
from tests.cases import cases
from tests.core.runs.event_strategies import HOSTILE_LINES
from tests.core.runs.helpers import config_for
from tests.core.runs.helpers import step_event as step
from tests.examples import examples

DEAD = {
    "state": "training",
    "pid": 2**22 + 1,
    "pid_started": "another-boot/1",
    "step": 3,
    "total_steps": 9,
    "updated": 1.0,
}


def foreign_run(directory: Path, lines: list[bytes] = [], state: bytes | None = None) -> Run:  # noqa: B006
    """A run directory with these events."""
    run = Run(directory / "20261124-143600-foreign")
    run.path.mkdir(parents=True)
    run.config_path.write_text(dump_config(config_for(directory)))
    run.state_path.write_bytes(json.dumps(DEAD).encode() if state is None else state)
    run.events_path.write_bytes(b"".join(line + b"\n" for line in lines))
    return run


def show_all(run: Run) -> str:
    """Output of the commands about a run."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        for view in (watch.Log(), watch.JsonLines(), progress.Progress()):
            followed = Followed(run, run.state())
            for batch in EventTail(run.events_path).batches():
                for event in batch:
                    view.event(event, followed.apply(event), followed)
            view.tick(followed)
            view.close()
            for line in summary_lines(followed, summarize(followed)):
                say(line)
            progress.Progress().message(progress.present(followed))
        row = RunCatalog().row(run)
        figures = runs.read_figures([row])
        runs._print_table([row], figures)
        emit([runs.describe_row(row, (), figures[run.id])])
    return out.getvalue()


@settings(
    deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(HOSTILE_LINES, max_size=12))
def test_no_record_ends_a_command(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = foreign_run(Path(directory), lines)
        text = show_all(run)
        assert not set(text) & set("\x1b\x07\x9b\x00"), text
        assert max(map(len, text.split("\n"))) < 500_000
        config = run.config()
        found = pace._pace(run, config)
        assert found is None or 0 < found.tokens_per_second < 1e12
        oom._last_figures(run.events_path)
        last_step(run)
        step = 0
        for event in EventTail(run.events_path).read_all():
            told = figures(event)
            step = step_of(event, step)
            assert 0 <= step < 2**63
            assert all(isinstance(value, float) and len(name) < 60 and name.isascii() for name, value in told.items())
            assert abs(event.t) <= 2.5e11 or event.t != event.t


def test_names_without_end_fill_no_memory() -> None:
    history = RunHistory()
    long = "x" * 4000
    for number in range(4500):
        history.apply(events.PhaseEvent(t=1.0, name=f"{number}"))
        history.apply(events.MemoryEvent(t=1.0, device=f"{number}"))
        history.apply(events.NoticeEvent(t=1.0, level="warning", code="", message=long))
        history.apply(events.ControlEvent(t=1.0, command="set", sender="socket", result=f"a.b{number} = 1"))
        history.apply(events.SampleEvent(t=1.0, step=1, prompt=long * 12, text=long * 12, source="base"))
    dropped = {"r" * 190 + str(n): 1 for n in range(250)}
    history.apply(events.DataEvent(rows=1, used=1, dropped=dropped, tokens=1, supervised_tokens=1, longest=1))
    assert max(len(history.phases), len(history.phase_seconds), len(history.memory)) <= 32
    assert history.settings == {}
    assert len(history.notices) <= 1000
    assert len(history.marks) <= 1000
    assert sum(len(sample.prompt + sample.text) for sample in history.samples) <= 1 << 22
    assert max(len(line.text) for line in history.log) <= 2000


def test_going_back_again_and_again_takes_no_time() -> None:
    history = RunHistory()
    for number in range(1, 20_001):
        history.apply(step(number))
    began = time.process_time()
    for _ in range(2000):
        history.apply(step(19_999, loss=float("nan")))
        history.apply(step(20_000))
    # Going through all earlier steps each time would take minutes.
    assert time.process_time() - began < 5
    assert history.step_count == 20_000
    assert history.tokens == 2_000_000


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(32 << 20)


ODD_FILES: dict[str, Callable[[Path], object]] = {
    "fifo": lambda path: os.mkfifo(path),
    "directory": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("/nowhere/at/all"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "huge": _sparse,
    "deep": lambda path: path.write_bytes(b"[" * 500_000),
    "binary": lambda path: path.write_bytes(os.urandom(5000)),
}  # fmt: skip


@cases("kind", ODD_FILES)
@cases("name", ["state_path", "events_path", "log_path", "config_path", "checkpoints_path"])
def test_whatever_lies_under_the_name_of_a_file(tmp_path: Path, kind: str, name: str) -> None:
    run = foreign_run(tmp_path)
    path: Path = getattr(run, name)
    path.unlink(missing_ok=True)
    ODD_FILES[kind](path)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert run.state().state == "lost"
        assert "lost" in show_all(run)
        assert failure_reason(run)
        log_tail(run)
        complete_checkpoints(run)
        assert isinstance(run.values(), dict)
        read_history(run)
    assert len(os.listdir("/proc/self/fd")) == descriptors


HOSTILE_STATES = [
    {"pid": 2**62}, {"pid": True}, {"step": 2**63}, {"step": 10**400}, {"total_steps": -1}, {"updated": 1e300},
    {"updated": "NaN"}, {"beat": 1e300}, {"beat": []}, {"socket": "a\0b"}, {"socket": 5}, {"pid_started": "a\0b"},
    {"memory_events": "/dev/zero", "memory_kills": 1}, {"memory_events": "a\0b", "memory_kills": 1},
    {"memory_events": "\ud800", "memory_kills": 1}, {"reason": "x" * 900_000}, {"reason": "\x1b]0;x\x07\ud800"},
    {"step_started": -1e11}, {"state": "stalled"}, {"state": ["training"]}, {"host": "elsewhere", "pid": 2**31 - 1},
    {"host": "elsewhere", "updated": 2.4e11}, {"host": "elsewhere", "updated": -2.4e11, "step_started": -2.5e11},
]  # fmt: skip


@cases("change", HOSTILE_STATES, ids=lambda change: next(iter(change)))
def test_no_state_ends_a_command(tmp_path: Path, change: dict[str, object]) -> None:
    run = foreign_run(tmp_path, state=json.dumps({**DEAD, **change}).encode())
    text = show_all(run)
    assert any(word in text for word in ("lost", "stalled"))
    assert not set(text) & set("\x1b\x07\x9b\x00")
    assert max(map(len, text.split("\n"))) < 20_000


def test_odd_names_are_listed_and_found(home: Path) -> None:
    names = [b"a\nb", b"\x1b]0;x\x07", b"caf\xe9", b"[red]", b"x" * 255]
    names += [b"00010101-000000-early", b"99991231-235959-late"]
    for name in names:
        path = home / "runs" / os.fsdecode(name)
        path.mkdir(parents=True)
        foreign = foreign_run(home / "elsewhere" / str(len(name) + name[0]))
        for file in foreign.path.iterdir():
            file.rename(path / file.name)
    (home / "runs" / "loop").symlink_to("loop")
    (home / "runs" / "file").write_text("")
    os.utime(home / "runs" / "[red]" / "run.toml", (2**40, 2**40))
    found = list_runs()
    assert len(found) == len(names)
    for run in found:
        assert not set(show_all(run)) & set("\x1b\x07")
        assert run.created is None or run.created.timestamp()
        assert find_run(str(run.path)) == run
    for text in ("/" + "a" * 5000, "x/" + "b" * 300 + "/c"):
        with pytest.raises(UserError, match="There is no run called"):
            find_run(text)


@cases("text", ["a = " + "[" * 50_000, "[method]\nrank = 0x" + "f" * 50_000, "\x00", "[model]\nbase = 5"])
def test_the_values_of_a_damaged_configuration_are_what_can_be_read(tmp_path: Path, text: str) -> None:
    run = foreign_run(tmp_path)
    run.config_path.write_text(text)
    values = run.values()
    assert set(values) <= {"method.rank", "model.base"}
    assert RunCatalog().row(run).base is None

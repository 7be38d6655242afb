"""Writing to a run directory: foreign files are refused, events are appended, and one worker holds the lock.

A run directory may come from anywhere, and a link in it may lead anywhere: only directories and plain files with a
single name are accepted. The exception is ``checkpoints``, which may link to another disk once the user has confirmed
its target; the home remembers that.

The lock on ``worker.lock`` is held exactly as long as the worker lives. The launcher takes it, and the worker inherits
the open descriptor, so a second launcher never finds it free in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from core import paths
from core.atomic import write_atomic
from core.beneath import open_beneath, unsafe_kind
from core.directories import disk_error
from core.errors import UserError
from core.lock_file import try_lock_file
from core.runs.record.events import Event, encode_event
from core.runs.record.state import END_STATES, RunState
from core.runs.record.store import EVENTS_NAME, Run
from core.small_files import read_json
from core.text import one_line

_RECORD_LIMIT = 64 << 10
#: The directory of the trackers, whose libraries make links between their own files.
_TRACKERS = "tracking"


def refuse_unsafe_files(run: Run, below: str = "") -> None:
    """Refuse a run with unsafe files, before it is written to.

    Args:
        run: The run.
        below: Check only this directory of it.

    Raises:
        UserError: If a file is a link, a pipe, a device or has a second name, or a directory cannot be read.
    """
    try:
        for path in _files_of(run, run.path / below):
            # Other processes of the run may remove files meanwhile.
            with suppress(FileNotFoundError):
                _refuse_unsafe(run, path, os.stat(path, follow_symlinks=False))
    except OSError as error:
        where = one_line(str(error.filename or run.path), 300)
        raise UserError(f"{where} cannot be read: {error.strerror}.", "Fix its permissions.") from error


def _files_of(run: Run, directory: Path) -> Iterator[Path]:
    """All entries in a directory of a run, at any depth, except directories; the path itself if it is a link."""
    if directory == run.checkpoints_path and directory.is_symlink():
        refuse_moved_checkpoints(run)
    elif directory.is_symlink() and directory != run.path:
        yield directory
        return
    try:
        with os.scandir(directory) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False) or (path == run.checkpoints_path and entry.is_symlink()):
            yield from _files_of(run, path)
        else:
            yield path


def _refuse_unsafe(run: Run, path: Path, status: os.stat_result) -> None:
    reason = unsafe_kind(status)
    # Workers listen on a socket; writing to its path is impossible.
    if reason is None or stat.S_ISSOCK(status.st_mode) or _is_of_tracker(run, path, status):
        return
    hint = "Remove it if you did not put it there."
    if stat.S_ISREG(status.st_mode):
        hint = "Copy the run ('cp -r --no-preserve=links'), and go on with the copy."
    raise UserError(f"{one_line(str(path), 300)} is not written to: {reason}.", hint)


def _is_of_tracker(run: Run, path: Path, status: os.stat_result) -> bool:
    """True for a link that a tracker's library has made to a file of its own."""
    parts = path.relative_to(run.path).parts
    if not stat.S_ISLNK(status.st_mode) or parts[0] != _TRACKERS or len(parts) < 3:
        return False
    own = os.path.realpath(run.path / _TRACKERS / parts[1])
    return os.path.realpath(path).startswith(f"{own}{os.sep}")


# Checkpoints on another disk.


def refuse_moved_checkpoints(run: Run) -> None:
    """Refuse a link ``checkpoints``, unless the user has confirmed its target.

    Raises:
        UserError: If the target is not confirmed.
    """
    path = run.checkpoints_path
    if not path.is_symlink():
        return
    target = os.path.realpath(path)
    if _confirmed_directory(run) != target:
        words = one_line(shlex.join(["localtune-tui", "continue", run.id, "--checkpoints", target]), 600)
        raise UserError(
            f"{one_line(str(path), 300)} is a link to {one_line(target, 300)}, and old checkpoints are deleted there.",
            f"If you have moved them there: {words}",
        )


def confirm_checkpoints(run: Run, directory: Path) -> None:
    """Remember that ``checkpoints`` of a run is a link to a directory elsewhere.

    Args:
        run: The run.
        directory: The target that the user confirms.

    Raises:
        UserError: If ``checkpoints`` is not a link or has another target, or the record cannot be written.
    """
    path = run.checkpoints_path
    if not path.is_symlink():
        raise UserError(
            f"{one_line(str(path), 300)} is no link: the checkpoints are in the run's own directory.",
            "To have them on another disk, move the directory there and link to it, then do it again.",
        )
    target, named = os.path.realpath(path), os.path.realpath(directory)
    if target != named:
        raise UserError(
            f"{one_line(str(path), 300)} is a link to {one_line(target, 300)}, not to {one_line(named, 300)}.",
            "Name the directory that it leads to, or change the link.",
        )
    if not os.path.isdir(target):
        raise UserError(f"There is no directory {one_line(target, 300)}.", "Mount its disk, then do it again.")
    record = _record_path(run)
    data = {"version": 1, "run": os.path.realpath(run.path), "checkpoints": target}
    try:
        paths.make_private_dir(record.parent)
        write_atomic(record, json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise disk_error(record.parent, error) from error


def _confirmed_directory(run: Run) -> str | None:
    """Directory that the user has confirmed for the checkpoints of a run; None without one."""
    try:
        data = read_json(_record_path(run), _RECORD_LIMIT)
        is_of_run = data["run"] == os.path.realpath(run.path)
        return str(data["checkpoints"]) if is_of_run else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record_path(run: Run) -> Path:
    return paths.moved_dir() / f"{run.id}.json"


def append_events(run: Run, *events: Event) -> None:
    """Append events to ``events.jsonl``.

    Args:
        run: The run; its worker may be alive.
        *events: The events.

    Raises:
        UserError: If they cannot be written.
    """
    with _opened_record(run) as file:
        _write_events(file, events)


def append_while_open(run: Run, *events: Event) -> bool:
    """Append events, unless the end of the run is recorded or being recorded (:func:`closing_record`), after which
    nothing may follow.

    Args:
        run: The run; its worker may be alive.
        *events: The events.

    Returns:
        True if they were added.

    Raises:
        UserError: If they cannot be written.
    """
    with _opened_record(run) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        state = RunState.read(run.state_path)
        if state is not None and state.state in END_STATES:
            return False
        _write_events(file, events)
        return True


@contextlib.contextmanager
def closing_record(descriptor: int) -> Iterator[None]:
    """Inside, a worker records the end of its run, and :func:`append_while_open` adds nothing.

    Args:
        descriptor: Of ``events.jsonl``.
    """
    # Without locks the end is recorded as well.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        # A forked process with the same descriptor would keep the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def _opened_record(run: Run) -> Iterator[IO[bytes]]:
    try:
        with os.fdopen(open_beneath(run.path, EVENTS_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+") as file:
            yield file
    except OSError as error:
        raise UserError(f"{run.events_path} cannot be written: {error.strerror}.", "Fix its permissions.") from error


def _write_events(file: IO[bytes], events: tuple[Event, ...]) -> None:
    lines = "".join(map(encode_event, events))
    if file.tell():
        file.seek(-1, os.SEEK_END)
        # A line that a kill cut short is terminated first.
        lines = lines if file.read(1) == b"\n" else "\n" + lines
    file.write(lines.encode("utf-8", errors="replace"))


#: Environment variable with the inherited descriptor.
LOCK_VARIABLE = "LOCALTUNE_WORKER_LOCK"


def try_lock(run: Run) -> int | None:
    """Try to take the run's lock.

    Returns:
        The descriptor that holds it (close it to release), or None if another process has it. On a file system without
        locks, always a descriptor.

    Raises:
        UserError: If the lock file cannot be made or locked.
    """
    return try_lock_file(run.path / "worker.lock", needs_locks=False)


def hold_worker_lock(run: Run) -> int:
    """Adopt the inherited lock, or take it if started by hand; called by the worker before anything else.

    Returns:
        The descriptor, to keep open for the life of the process; the worker's own children do not inherit it.

    Raises:
        UserError: If another worker has the lock.
    """
    inherited = os.environ.pop(LOCK_VARIABLE, "")
    if inherited.isascii() and inherited.isdigit() and _is_lock_of(run, int(inherited)):
        os.set_inheritable(int(inherited), False)
        return int(inherited)
    descriptor = try_lock(run)
    if descriptor is None:
        raise UserError(f"Run {run.id} already has a worker.", f"Watch it with 'localtune-tui watch {run.id}'.")
    return descriptor


def _is_lock_of(run: Run, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(run.path / "worker.lock"))
    except (OSError, OverflowError):
        return False

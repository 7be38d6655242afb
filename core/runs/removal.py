"""Removal of runs: their size on disk, and their deletion."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from core import paths
from core.errors import UserError
from core.runs.lock import try_lock
from core.runs.state import in_words
from core.runs.store import Run
from core.text import one_line

#: Beginning of the names of directories with deleted runs; one that is left was interrupted.
_ASIDE = ".deleted-"
#: Age from which such a directory counts as left by an interrupted deletion.
_INTERRUPTED_SECONDS = 3600.0


def directory_size(path: Path) -> int:
    """Size of all files in a directory, in bytes; links are not followed, and what cannot be read counts as nothing."""
    total, linked, waiting = 0, set[tuple[int, int]](), [os.fspath(path)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1:
                        if (identity := (status.st_dev, status.st_ino)) in linked:
                            continue
                        linked.add(identity)
                    total += status.st_size
    return total


def refuse_removal(run: Run) -> None:
    """Refuse to delete a run that is live, or is no plain directory among the runs of this home.

    Raises:
        UserError: In these cases.
    """
    shown = one_line(str(run.path), 200)
    if os.path.islink(run.path):
        target = one_line(os.path.realpath(run.path), 200)
        raise UserError(f"{shown} is a link to {target}.", "Delete the link and what it leads to yourself.")
    if os.path.realpath(run.path.parent) != os.path.realpath(paths.runs_dir()):
        raise UserError(f"{shown} is not among the runs in {paths.runs_dir()}.", "Delete it yourself.")
    state = run.state()
    if not state.is_over:
        raise UserError(
            f"{run.id} {in_words(state.state)}; a live run is not deleted.",
            f"Stop it first with 'localtune-tui stop {run.id}'.",
        )


def move_aside(run: Run, place: Path) -> None:
    """Move an ended run into another directory of the same file system, at once and whole, and forget its socket.

    Raises:
        UserError: If it is live, or cannot be moved.
    """
    refuse_removal(run)
    lock = try_lock(run)
    if lock is None:
        raise UserError(f"{run.id} has a worker.", f"Stop it first with 'localtune-tui stop {run.id}'.")
    socket = run.socket_path
    try:
        os.rename(run.path, place / run.id)
    except OSError as error:
        hint = f"Fix the permissions of {run.path.parent}."
        if error.errno == errno.EXDEV:
            hint = "The trash is on another disk; delete it without the trash: localtune-tui rm --now."
        raise UserError(f"{run.id} cannot be deleted: {error.strerror}.", hint) from error
    finally:
        os.close(lock)
    if socket.parent != run.path:
        with suppress(OSError):
            socket.unlink()


def remove_run(run: Run) -> None:
    """Delete an ended run with everything in it, for good.

    It is moved aside first, so that no half of a run is ever listed; links in it are deleted, and never followed.

    Raises:
        UserError: If it is live, or cannot be deleted; the message says what is left of it.
    """
    refuse_removal(run)
    try:
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=run.path.parent))
    except OSError as error:
        raise UserError(
            f"{run.id} cannot be deleted: {error.strerror}.", f"Fix the permissions of {run.path.parent}."
        ) from error
    try:
        move_aside(run, aside)
    except BaseException:
        aside.rmdir()
        raise
    if (fault := delete_directory(aside)) is not None:
        raise UserError(
            f"{run.id} is deleted only in part, as {fault}.",
            f"What is left of it takes room in {one_line(str(aside), 200)}; delete that.",
        )
    _sweep(run.path.parent)


def delete_directory(directory: Path) -> str | None:
    """Delete a directory as far as possible; the first failure in words."""
    faults: list[str] = []

    def note(path: str, error: BaseException) -> None:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        faults.append(f"{one_line(os.path.relpath(path, directory), 120)} cannot be removed: {reason}")

    if sys.version_info >= (3, 12):
        shutil.rmtree(directory, onexc=lambda _, path, error: note(path, error))
    else:
        shutil.rmtree(directory, onerror=lambda _, path, info: note(path, info[1]))
    return faults[0] if faults else None


def _sweep(runs: Path) -> None:
    """Delete what interrupted deletions have left."""
    with suppress(OSError):
        for left in runs.glob(f"{_ASIDE}*"):
            # A newer one may be at work in another process.
            if not left.is_symlink() and left.stat().st_mtime < time.time() - _INTERRUPTED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

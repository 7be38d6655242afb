"""Removal of runs: their size on the disk, their deletion, and the trash.

Each deletion to the trash has a directory of its own in the home, named by its time, which holds the run directory. A
run enters and leaves by one rename, so that a partial run is never listed.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from core import paths
from core.atomic import fsync_dir
from core.errors import UserError
from core.runs.record.state import in_words
from core.runs.record.store import Run, numbered, try_lock
from core.text import one_line

#: Prefix of directories with runs that are being deleted; it stays if the deletion is interrupted.
_ASIDE = ".deleted-"
#: Age from which such a directory counts as left by an interrupted deletion.
_INTERRUPTED_SECONDS = 3600.0


def directory_size(path: Path) -> int:
    """Size of all files in a directory, in bytes; links are not followed, and unreadable files count as nothing."""
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
    """Refuse to delete a run that is live, or is not a plain directory among the runs of this home.

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
    """Move an ended run into another directory of the same file system by one rename, and remove its socket.

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
    """Delete an ended run for good.

    It is moved aside first, so that a partial run is never listed. Links in it are deleted, and never followed.

    Raises:
        UserError: If it is live, or cannot be deleted; the message names the files that are left.
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
    _delete(aside, run.id)
    _sweep(run.path.parent, _INTERRUPTED_SECONDS)


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


def _delete(aside: Path, name: str) -> None:
    """Delete the directory of a run that was moved aside, and the answers of its trained model that exports have kept.

    Raises:
        UserError: If a part of it is left.
    """
    for kept in paths.answers_dir().glob(f"{glob.escape(name)}-{'[0-9a-f]' * 32}"):
        shutil.rmtree(kept, ignore_errors=True)
    if (fault := delete_directory(aside)) is not None:
        raise UserError(
            f"{one_line(name, 100)} is deleted only in part, as {fault}.",
            f"What is left of it takes up space in {one_line(str(aside), 200)}; delete that.",
        )


def _sweep(directory: Path, age: float = 0.0) -> None:
    """Delete the remains of interrupted deletions from an age on, in seconds."""
    with suppress(OSError):
        for left in directory.glob(f"{_ASIDE}*"):
            # A newer one may be in progress in another process.
            if not left.is_symlink() and left.stat().st_mtime <= time.time() - age:
                delete_directory(left)


_STAMP = "%Y%m%d-%H%M%S"
_STAMPED = re.compile(r"\d{8}-\d{6}(-\d+)?", re.ASCII)


@dataclass(frozen=True)
class TrashedRun:
    """A run in the trash."""

    path: Path
    """Its directory there."""

    @property
    def id(self) -> str:
        """The id of the run, before its deletion and after its restoration."""
        return self.path.name

    @property
    def deleted(self) -> float:
        """Unix time of its deletion; 0 if unknown."""
        try:
            return datetime.strptime(self.path.parent.name[:15], _STAMP).timestamp()
        except (ValueError, OverflowError, OSError):
            return 0.0

    @property
    def size(self) -> int:
        """Its bytes on the disk."""
        return directory_size(self.path)


def trash_run(run: Run) -> TrashedRun:
    """Move an ended run to the trash.

    Raises:
        UserError: If it is live, or cannot be moved.
    """
    parent = paths.make_private_dir(paths.trash_dir())
    place = _new_place(parent)
    try:
        move_aside(run, place)
    except BaseException:
        with suppress(OSError):
            place.rmdir()
        raise
    with suppress(OSError):
        fsync_dir(parent)
    return TrashedRun(place / run.id)


def list_trash() -> list[TrashedRun]:
    """All runs in the trash, last deleted first."""
    found = []
    with suppress(OSError):
        for place in sorted(paths.trash_dir().iterdir(), reverse=True):
            if _STAMPED.fullmatch(place.name) and place.is_dir() and not place.is_symlink():
                found += [TrashedRun(path) for path in place.iterdir() if path.is_dir() and not path.is_symlink()]
    return found


def find_trashed(name: str) -> TrashedRun:
    """The run in the trash that a user names by its id or a part of it; of several deletions of one id, the last.

    Raises:
        UserError: If there is none, or more than one.
    """
    trash = list_trash()
    matches = [item for item in trash if item.id == name] or [item for item in trash if name and name in item.id]
    identities = list(dict.fromkeys(item.id for item in matches))
    if not identities:
        raise UserError(
            f"There is no run called {one_line(name, 200)} in the trash.", "'localtune-tui trash list' lists them."
        )
    if len(identities) > 1:
        shown = ", ".join(one_line(identity, 60) for identity in identities[:4])
        raise UserError(f"{one_line(name, 200)} could mean {len(identities)} runs: {shown}.", "Give more of the id.")
    return matches[0]


def restore_run(item: TrashedRun) -> Run:
    """Move a run back among the runs.

    Raises:
        UserError: If another run has its id, or it cannot be moved.
    """
    run = Run(paths.make_private_dir(paths.runs_dir()) / item.id)
    shown = one_line(item.id, 100)
    if os.path.lexists(run.path):
        raise UserError(f"There is a run {shown} again.", "Rename or delete that directory first.")
    try:
        os.rename(item.path, run.path)
        fsync_dir(run.path.parent)
    except OSError as error:
        raise UserError(
            f"{shown} cannot be restored: {error.strerror}.", f"Move {one_line(str(item.path), 200)} yourself."
        ) from error
    with suppress(OSError):
        item.path.parent.rmdir()
    return run


def remove_trashed(item: TrashedRun) -> None:
    """Delete a run in the trash for good; links in it are deleted, and never followed.

    Its directory is hidden first, so that a partial run can never be restored.

    Raises:
        UserError: If it cannot be deleted completely.
    """
    place = item.path.parent
    aside = place.with_name(f"{_ASIDE}{place.name}")
    try:
        os.rename(place, aside)
    except OSError as error:
        raise UserError(
            f"{one_line(item.id, 100)} cannot be deleted: {error.strerror}.", f"Fix the permissions of {place.parent}."
        ) from error
    _delete(aside, item.id)


def sweep_trash() -> None:
    """Delete the remains of interrupted deletions in the trash."""
    _sweep(paths.trash_dir())


def _new_place(parent: Path) -> Path:
    """A new directory in the trash, named by the time."""
    for name in numbered(datetime.now().strftime(_STAMP)):
        place = parent / name
        try:
            place.mkdir(mode=paths.DIRECTORY_MODE)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"{one_line(str(place), 200)} cannot be created: {error.strerror}.",
                "Make room, or delete without the trash: localtune-tui rm --now.",
            ) from error
    return place

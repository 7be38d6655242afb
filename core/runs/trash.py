"""The trash: runs that were deleted, whole, until they are restored or the trash is emptied.

Each deletion has a directory of its own under the home, named by its time, with the run directory in it. A run comes
in and goes out by one rename, so that no half of a run is ever listed anywhere.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from core import paths
from core.atomic import fsync_dir
from core.errors import UserError
from core.runs.removal import delete_directory, directory_size, move_aside
from core.runs.store import Run
from core.text import one_line

_STAMP = "%Y%m%d-%H%M%S"
#: Beginning of the names of places that are being deleted.
_ASIDE = ".deleted-"
_STAMPED = re.compile(r"\d{8}-\d{6}(-\d+)?", re.ASCII)


@dataclass(frozen=True)
class TrashedRun:
    """A run in the trash."""

    path: Path
    """Its directory there."""

    @property
    def id(self) -> str:
        """The id that it had, and has again once it is restored."""
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
    """All runs in the trash, the one deleted last first."""
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
        UserError: If another run has its id by now, or it cannot be moved.
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

    Its place is hidden first, so that no half of a run can be restored.

    Raises:
        UserError: If something is left of it.
    """
    place = item.path.parent
    aside = place.with_name(f"{_ASIDE}{place.name}")
    try:
        os.rename(place, aside)
    except OSError as error:
        raise UserError(
            f"{one_line(item.id, 100)} cannot be deleted: {error.strerror}.", f"Fix the permissions of {place.parent}."
        ) from error
    if (fault := delete_directory(aside)) is not None:
        raise UserError(
            f"{one_line(item.id, 100)} is deleted only in part, as {fault}.",
            f"What is left of it takes room in {one_line(str(aside), 200)}; delete that.",
        )


def sweep_trash() -> None:
    """Delete what interrupted deletions have left in the trash."""
    with suppress(OSError):
        for left in paths.trash_dir().glob(f"{_ASIDE}*"):
            if not left.is_symlink():
                delete_directory(left)


def free_bytes() -> int | None:
    """Free bytes of the disk that the home is on; None if they cannot be told."""
    try:
        return shutil.disk_usage(paths.existing_parent(paths.home())).free
    except OSError:
        return None


def _new_place(parent: Path) -> Path:
    """A new directory in the trash, named by the time."""
    stamp, number = datetime.now().strftime(_STAMP), 1
    while True:
        place = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            place.mkdir(mode=paths.DIRECTORY_MODE)
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise UserError(
                f"{one_line(str(place), 200)} cannot be created: {error.strerror}.",
                "Make room, or delete without the trash: localtune-tui rm --now.",
            ) from error
        return place

"""Paths of localtune: the home directory, private to the user, and its contents."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from core.errors import UserError

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

#: The working directory when it was last there.
_known_directories: list[str] = []


def home() -> Path:
    """The home directory: ``$LOCALTUNE_HOME``, else ``$XDG_DATA_HOME/localtune``, else ``~/.local/share/localtune``.

    It is not created.

    Raises:
        UserError: If none of them is defined.
    """
    if explicit := os.environ.get("LOCALTUNE_HOME"):
        return _expanded(explicit)
    if data_home := os.environ.get("XDG_DATA_HOME"):
        return _expanded(data_home) / "localtune"
    return _expanded("~/.local/share/localtune")


def models_dir() -> Path:
    """Prepared models for offline use, a directory each."""
    return home() / "models"


def datasets_dir() -> Path:
    """Datasets downloaded from a hub, a directory each."""
    return home() / "datasets"


def runs_dir() -> Path:
    """Runs, a directory each."""
    return home() / "runs"


def exports_dir() -> Path:
    """Exports of runs, a directory each."""
    return home() / "exports"


def queue_dir() -> Path:
    """The queue of runs, their configurations, and the activity of its runner."""
    return home() / "queue"


def devices_dir() -> Path:
    """Locks of devices, a folder for each machine."""
    return home() / "devices"


def drafts_dir() -> Path:
    """Unsaved work in the app, a file each."""
    return home() / "drafts"


def tools_dir() -> Path:
    """Third-party programs that are used without installation, a directory each."""
    return home() / "tools"


def cache_dir() -> Path:
    """Cached facts about runs; may be deleted at any time."""
    return home() / "cache"


def answers_dir() -> Path:
    """Answers of trained models that are kept between exports."""
    return cache_dir() / "answers"


def trash_dir() -> Path:
    """Runs that were deleted and can be restored, a directory for each deletion."""
    return home() / "trash"


def moved_dir() -> Path:
    """Records of runs whose checkpoints the user has moved to another disk, a file each."""
    return home() / "moved"


def calibration_dir() -> Path:
    """The memory plan's constants as measured on this machine's devices, a file each."""
    return home() / "calibration"


def audits_dir() -> Path:
    """Copies of runs that an audit executes again; empty without a running audit."""
    return home() / "audits"


def selftest_dir() -> Path:
    """The last report of the self-test, and its runs while it is running."""
    return home() / "selftest"


def crashes_dir() -> Path:
    """Crash reports of the app, a file each."""
    return home() / "crashes"


def config_dir() -> Path:
    """The directory of the user's keymap and themes: ``$XDG_CONFIG_HOME/localtune``, else ``~/.config/localtune``.

    It is not created.
    """
    return _expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "localtune"


def _expanded(path: str) -> Path:
    user_home = os.environ.get("HOME", "/")
    if path.startswith("~/") and not os.path.isabs(user_home):
        # An empty one would mean the root of the file system, a relative one a place in the current directory.
        raise UserError(f"HOME is '{user_home}', which is not an absolute path.", "Set HOME or LOCALTUNE_HOME to one.")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"The home directory that {path} lies in cannot be determined.", "Set LOCALTUNE_HOME."
        ) from error


def working_directory() -> Path:
    """The working directory; after its deletion its last known path, or else the root."""
    with contextlib.suppress(OSError):
        _known_directories[:] = [os.getcwd()]
    return Path(_known_directories[0] if _known_directories else "/")


def user_path(path: str | Path) -> Path:
    """A path that a user typed, with ``~`` and ``~name`` replaced.

    Unlike ``Path.expanduser`` it raises nothing: the home of a user who does not exist stays as it is written, and
    is then a missing file.
    """
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a NUL in the name of the user
        return Path(path)


def shown_path(path: Path) -> str:
    """A path for display: one in the user's home begins with ``~``."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def existing_parent(path: Path) -> Path:
    """The directory itself, or the nearest of its parents that exists."""
    return next(place for place in [path, *path.parents] if os.path.exists(place))


def make_private_dir(path: Path) -> Path:
    """Create a directory and its parents, the new ones accessible to the user alone.

    Raises:
        UserError: If it cannot be created or is not writable.
    """
    try:
        missing = [directory for directory in [path, *path.parents] if not os.path.exists(directory)]
        for directory in reversed(missing):
            directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        writable = path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError(
            f"{path} cannot be created: {error.strerror}.", "Set LOCALTUNE_HOME to a directory that you can write to."
        ) from error
    if not writable:
        raise UserError(
            f"{path} is not a directory that can be written to.",
            "Set LOCALTUNE_HOME to a directory that you can write to, or fix its permissions.",
        )
    return path

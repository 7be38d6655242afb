"""Where things live: the home directory of localtune and what is in it (design: one directory, private to the user)."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import UserError

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


def home() -> Path:
    """``$LOCALTUNE_HOME``, else ``$XDG_DATA_HOME/localtune``, else ``~/.local/share/localtune``; not created.

    Raises:
        UserError: If there is no telling where that is.
    """
    if explicit := os.environ.get("LOCALTUNE_HOME"):
        return _expanded(explicit)
    if data_home := os.environ.get("XDG_DATA_HOME"):
        return _expanded(data_home) / "localtune"
    return _expanded("~/.local/share/localtune")


def models_dir() -> Path:
    """Models made ready for offline use, a directory each."""
    return home() / "models"


def datasets_dir() -> Path:
    """Datasets fetched from a hub, a directory each."""
    return home() / "datasets"


def runs_dir() -> Path:
    """Runs, a directory each."""
    return home() / "runs"


def drafts_dir() -> Path:
    """What has been edited in the app and is in no file yet, a file each."""
    return home() / "drafts"


def crashes_dir() -> Path:
    """Reports of mistakes that ended the app, a file each."""
    return home() / "crashes"


def config_dir() -> Path:
    """``$XDG_CONFIG_HOME/localtune``, else ``~/.config/localtune``: the user's keymap and themes; not created."""
    return _expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "localtune"


def _expanded(path: str) -> Path:
    user_home = os.environ.get("HOME", "/")
    if path.startswith("~/") and not os.path.isabs(user_home):
        # Empty it would stand for the root of the file system, relative for a place in whatever directory one is in.
        raise UserError(f"HOME is '{user_home}', which is no absolute path.", "Set HOME or LOCALTUNE_HOME to one.")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"The home directory that {path} lies in cannot be determined.", "Set LOCALTUNE_HOME."
        ) from error


def user_path(path: str | Path) -> Path:
    """A path as a user writes it, with ``~`` and ``~name`` replaced.

    Unlike ``Path.expanduser`` it raises nothing: the home of a user who does not exist stays as it is written, and is
    then a file that is not there.
    """
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a NUL in the name of the user
        return Path(path)


def shown_path(path: Path) -> str:
    """A path as people write it: what lies in the user's home begins with ``~``."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def existing_parent(path: Path) -> Path:
    """The directory itself, or the nearest of its parents that exists."""
    return next(place for place in [path, *path.parents] if os.path.exists(place))


def make_private_dir(path: Path) -> Path:
    """Create a directory and its parents, the new ones readable by the user alone.

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
            f"{path} cannot be created: {error.strerror}.",
            "Set LOCALTUNE_HOME to a directory that you can write to.",
        ) from error
    if not writable:
        raise UserError(
            f"{path} is not a directory that can be written to.",
            "Set LOCALTUNE_HOME to a directory that you can write to, or mend its permissions.",
        )
    return path

"""What the relative paths of another tool's file stand for, and how they are written so that they still hold."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core.hub.shard_names import is_data_name

#: How many directories above the file are tried as the place where the tool is run.
_UPWARD = 5


@dataclass(frozen=True)
class Places:
    """Where a tool is run, and where our configuration will lie.

    Args:
        base: The directory that relative paths start from.
        home: The directory of the configuration being made; None if it is not known yet.
    """

    base: Path
    home: Path | None = None

    @classmethod
    def find(cls, file: Path, names: Iterable[str], home: Path | None = None) -> Places:
        """Decide where the tool is run: a file does not say it.

        The present directory, that of the file and those above it are tried; the first in which most of the named
        paths exist is taken, and the present one where none does.
        """
        here = Path.cwd()
        start = Path(os.path.abspath(file)).parent
        candidates = list(dict.fromkeys([here, start, *list(start.parents)[:_UPWARD]]))
        wanted = [name for name in dict.fromkeys(names) if _is_relative(name)]
        best = max(candidates, key=lambda base: sum(_exists(base / name) for name in wanted))
        return cls(best, Path(os.path.abspath(home)) if home is not None else None)

    def locate(self, name: str) -> Path:
        """The absolute path that a name stands for."""
        return Path(os.path.normpath(self.base / os.path.expanduser(name)))

    def exists(self, name: str) -> bool:
        """Whether there is something at a path of the file."""
        return _exists(self.locate(name))

    def is_local(self, name: str) -> bool:
        """Whether a name stands for a path of this machine, and not for something on a hub or in a store."""
        if "://" in name:
            return False
        plain = name.startswith(("/", "./", "../", "~")) or name in (".", "..") or is_data_name(name)
        return plain or self.exists(name)

    def write(self, path: Path, mark: str = "") -> str:
        """A path as our configuration names it: relative below its own directory, else absolute.

        Args:
            path: An absolute one.
            mark: What stands behind the path, as ``#name``.
        """
        if self.home is not None and path.is_relative_to(self.home) and path != self.home:
            return f"{path.relative_to(self.home)}{mark}"
        return f"{path}{mark}"


def _is_relative(name: str) -> bool:
    return bool(name) and "://" not in name and not os.path.isabs(os.path.expanduser(name))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False

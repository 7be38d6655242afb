"""Rights of a process that reads untrusted files: files, helpers and network."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Most directory entries, and levels, searched for links, since a user may name a whole home directory.
_MOST_ENTRIES, _DEEPEST = 10_000, 4
#: System files that libraries read; none belong to a user. Under Landlock, the kernel hides the secrets of other
#: processes in ``/proc``.
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc", "/opt", "/nix/store", "/gnu/store", "/snap"),
    *("/proc", "/sys", "/run/current-system", "/run/opengl-driver"),
)


@dataclass(frozen=True)
class Rights:
    """Rights of a confined process. Any process may read the program's own files and system files.

    Args:
        reads: Readable files and directories. Links, also inside the directories, stand for their targets; missing
            files are skipped.
        writes: Writable directories.
        starts_helpers: True to start helpers of this program, which inherit the rights.
        uses_network: True to make connections.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    starts_helpers: bool = False
    uses_network: bool = False


#: No additional rights.
NO_RIGHTS = Rights()


def reading(*paths: Path | str) -> Rights:
    """Rights to read files and directories; relative paths start at the working directory of this process."""
    return Rights(tuple(os.path.abspath(path) for path in paths))


def with_targets(paths: Sequence[str]) -> Iterator[str]:
    """Paths, and the targets of links below them, as in the cache of a Hub."""
    yield from paths
    waiting, left = deque((path, 0) for path in paths), _MOST_ENTRIES
    while waiting and left > 0:
        directory, depth = waiting.popleft()
        try:
            with os.scandir(directory) as found:
                entries = list(itertools.islice(found, left))
        except (OSError, ValueError):
            continue  # a file, or not readable
        left -= len(entries)
        for entry in entries:
            if entry.is_symlink():
                # Not linked directories, which the user has not named.
                if os.path.isfile(entry.path):
                    yield os.path.realpath(entry.path)
            elif depth < _DEEPEST and entry.is_dir():
                waiting.append((entry.path, depth + 1))


def identities(rights: Rights) -> frozenset[tuple[int, int]]:
    """Device and inode of all readable and writable files, since a path may stand for another file later."""
    found = set()
    for path in (*with_targets(rights.reads), *rights.writes):
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        found.add((status.st_dev, status.st_ino))
    return frozenset(found)


@functools.cache
def program_files() -> list[str]:
    """Files and directories that any process may read: interpreter, modules, shared libraries, system."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    python = (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, sys.executable, *sys.path)
    own = {os.path.realpath(path) for path in (*python, *libraries, *_archives()) if path}
    user_home = os.path.realpath(os.path.expanduser("~"))
    # A module path at or above the user's home would open all of it.
    return [*_SYSTEM, *sorted(path for path in own if not Path(user_home).is_relative_to(path))]


def _archives() -> Iterator[str]:
    """Directory of packages linked file by file by the installer, such as ``uv`` with ``--link-mode symlink``."""
    spec = importlib.util.find_spec("pydantic")  # always installed
    place = Path(spec.origin or "" if spec is not None else "")
    real = Path(os.path.realpath(place))
    pairs = zip(real.parts[::-1], place.parts[::-1], strict=False)
    parts = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if place.is_symlink() and len(real.parts) > parts + 2:
        yield str(real.parents[parts])

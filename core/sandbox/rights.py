"""Rights of a process that reads foreign files: what it may use beside the program's own files."""

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

#: Most entries of directories that are looked at for links, and how deep: a user may have named all of a home.
_MOST_ENTRIES, _DEEPEST = 10_000, 4
#: Files of the system that the libraries read, and none that are a user's. The kernel itself keeps secrets of other
#: processes in ``/proc`` from a process under Landlock.
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc", "/opt", "/nix/store", "/gnu/store", "/snap"),
    *("/proc", "/sys", "/run/current-system", "/run/opengl-driver"),
)


@dataclass(frozen=True)
class Rights:
    """Files, helpers and network of a confined process. Every one may read the program's own files and the system's.

    Args:
        reads: Files and directories that it reads. A link, also one that lies in such a directory, stands for its
            target; what does not exist is skipped.
        writes: Directories that it writes to.
        starts_helpers: Whether it starts helpers of this program, which have no more rights than it has itself.
        uses_network: Whether it makes connections.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    starts_helpers: bool = False
    uses_network: bool = False


#: No rights beyond those that every process has.
NO_RIGHTS = Rights()


def reading(*paths: Path | str) -> Rights:
    """Rights to read some files and directories; relative paths are those of this process."""
    return Rights(tuple(os.path.abspath(path) for path in paths))


def with_targets(paths: Sequence[str]) -> Iterator[str]:
    """Paths, and the files that links below them lead to: a hub's cache is made of links."""
    yield from paths
    waiting, left = deque((path, 0) for path in paths), _MOST_ENTRIES
    while waiting and left > 0:
        directory, depth = waiting.popleft()
        try:
            with os.scandir(directory) as found:
                entries = list(itertools.islice(found, left))
        except (OSError, ValueError):
            continue  # a file, or nothing that can be read
        left -= len(entries)
        for entry in entries:
            if entry.is_symlink():
                # A whole directory behind a link was not named by the user.
                if os.path.isfile(entry.path):
                    yield os.path.realpath(entry.path)
            elif depth < _DEEPEST and entry.is_dir():
                waiting.append((entry.path, depth + 1))


def identities(rights: Rights) -> frozenset[tuple[int, int]]:
    """Device and inode of everything that may be read or written: a path may stand for another file later."""
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
    """Files and directories that any process reads: the interpreter, modules, shared libraries, the system."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    python = (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, sys.executable, *sys.path)
    own = {os.path.realpath(path) for path in (*python, *libraries, *_archives()) if path}
    user_home = os.path.realpath(os.path.expanduser("~"))
    # A place of modules that is the user's home, or above it, would open all of it.
    return [*_SYSTEM, *sorted(path for path in own if not Path(user_home).is_relative_to(path))]


def _archives() -> Iterator[str]:
    """Directory of packages that the installer has linked file by file, as uv does with ``--link-mode symlink``."""
    spec = importlib.util.find_spec("pydantic")  # one of the packages that are always there
    place = Path(spec.origin or "" if spec is not None else "")
    real = Path(os.path.realpath(place))
    pairs = zip(real.parts[::-1], place.parts[::-1], strict=False)
    parts = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if place.is_symlink() and len(real.parts) > parts + 2:
        yield str(real.parents[parts])

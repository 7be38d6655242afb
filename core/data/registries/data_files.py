"""Data files of a configuration, and their hashes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.data.registries.resolve import flat_sources
from core.data.registries.source import DataSource
from core.errors import UserError
from core.small_files import hash_file

if TYPE_CHECKING:
    from core.config.schema import DataSection


#: Seconds between checks for a stop of the run.
_PATIENCE = 0.2


def data_files(data: DataSection) -> list[Path]:
    """Files that rows are read from, each once, in order; for a directory, all files that are not hidden.

    Raises:
        UserError: If an entry cannot be resolved.
    """
    entries = (data.train, data.eval)
    sources = [source for entry in entries if entry for source in flat_sources(entry, data.format, data.columns)]
    return list(dict.fromkeys(path for source in sources for path in _files_of(source)))


def _files_of(source: DataSource) -> Iterator[Path]:
    if source.files:
        yield from source.files
        return
    whole = source.path if os.path.exists(source.path) else Path(str(source.path).rpartition("#")[0])
    if not os.path.isdir(whole):
        yield whole
        return
    for directory, below, names in os.walk(whole):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(directory) / name for name in sorted(names) if not name.startswith("."))


def hash_data_files(data: DataSection) -> dict[str, str]:
    """SHA-256 of each data file by path; empty for a file that cannot be read.

    Raises:
        UserError: If an entry cannot be resolved.
    """
    found = {}
    for path in data_files(data):
        try:
            found[str(path)] = hash_file(path)
        except OSError:
            found[str(path)] = ""
    return found


class DataHashes:
    """Hashes the data files of a run in a thread, while the model is loaded.

    Args:
        data: Section of the configuration that names the files.
    """

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._found: dict[str, str] = {}
        self._thread = threading.Thread(target=self._compute, name="data hashes", daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        try:
            self._found = hash_data_files(self._data)
        except UserError:
            self._found = {}

    def settle(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait for the hashes.

        Args:
            check: Called several times per second; may raise to abort.
        """
        while self._thread.is_alive():
            check()
            self._thread.join(_PATIENCE)

    @property
    def found(self) -> dict[str, str]:
        """SHA-256 by path; blocks until computed. Empty if an entry cannot be resolved any more."""
        self._thread.join()
        return self._found

"""Summary cache: what is known of ended runs, in a file of the home; to read a thousand of them anew takes seconds.

The file can be deleted at any time; a stamp in each entry tells whether it still holds.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.small_files import read_json

#: Format of the file; one of another version is not read.
VERSION = 1
#: Largest file, in bytes: some hundred for each run.
FILE_LIMIT = 64 << 20


class SummaryCache:
    """Entries by run id; belongs to one thread. Several processes may write: the last one wins.

    Args:
        name: Of the file.
    """

    def __init__(self, name: str) -> None:
        self._name = f"{name}.json"
        self._entries: dict[str, Any] | None = None
        self._is_changed = False

    def get(self, identity: str) -> dict[str, Any] | None:
        """The entry of a run; None if there is none."""
        entry = self._read().get(identity)
        return entry if isinstance(entry, dict) else None

    def put(self, identity: str, entry: dict[str, Any]) -> None:
        """Set the entry of a run, in memory."""
        entries = self._read()
        if entries.get(identity) != entry:
            entries[identity], self._is_changed = entry, True

    def keep_only(self, identities: Collection[str]) -> None:
        """Drop the entries of runs that are gone."""
        entries = self._read()
        if gone := entries.keys() - set(identities):
            self._entries = {identity: entry for identity, entry in entries.items() if identity not in gone}
            self._is_changed = True

    def save(self) -> None:
        """Write the file, if an entry has changed; without room for it, nothing is kept."""
        if not self._is_changed:
            return
        self._is_changed = False
        with suppress(OSError, UserError, ValueError):
            directory = paths.make_private_dir(paths.cache_dir())
            data = json.dumps({"version": VERSION, "runs": self._entries}, separators=(",", ":"))
            write_atomic(directory / self._name, data, durable=False)

    def _read(self) -> dict[str, Any]:
        if self._entries is None:
            self._entries = {}
            with suppress(OSError, UserError, ValueError):
                data = read_json(paths.cache_dir() / self._name, FILE_LIMIT, finite=False)
                is_known = isinstance(data, dict) and data.get("version") == VERSION
                if is_known and isinstance(data.get("runs"), dict):
                    self._entries = data["runs"]
        return self._entries

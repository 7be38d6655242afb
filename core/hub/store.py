"""Datasets of a hub that are on this machine: where they are, and what of them is there. The network is never asked.

``datasets/<owner>--<name>/`` holds ``refs.json`` (revision to commit, as last fetched) and a directory for each commit.
In it lie the files under the names they have in the repository, and ``localtune.json``, written last: what the
repository holds and which of it has been fetched whole. A file that it does not list is not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.atomic import write_atomic
from core.errors import UserError
from core.hub.entries import DEFAULT_REVISION, HubEntry, is_commit, is_hub_entry, is_safe_name, parse_dataset
from core.hub.selection import Selection, Subset, data_names, select
from core.models.files import RECORD_NAME
from core.paths import datasets_dir
from core.text import one_line

REFS_NAME = "refs.json"
#: Where files lie until they are whole.
PARTIAL_NAME = ".partial"

_SHORT = 7


class NotFetchedError(UserError):
    """An entry, or a part of it, is not on this machine.

    Args:
        entry: The entry.
        message: See :class:`~core.errors.UserError`.
    """

    def __init__(self, entry: HubEntry, message: str = "") -> None:
        super().__init__(message or f"{entry} is not on this machine.", f"'localtune-tui fetch {entry}' downloads it.")
        self.entry = entry


@dataclass(frozen=True)
class Record:
    """What is known of a repository at one commit.

    Args:
        repository: ``owner/name``.
        commit: The commit.
        files: Its data files and their bytes.
        subsets: What its card declares.
        have: The files that are here.
    """

    repository: str
    commit: str
    files: Mapping[str, int]
    subsets: Sequence[Subset] = ()
    have: frozenset[str] = frozenset()

    def to_json(self) -> str:
        """For ``localtune.json``."""
        subsets = [
            {
                "name": item.name,
                "default": item.is_default,
                "splits": {key: list(item.splits[key]) for key in item.splits},
            }
            for item in self.subsets
        ]
        values = {"source": "hub", "repository": self.repository, "commit": self.commit, "files": dict(self.files)}
        return json.dumps({**values, "subsets": subsets, "have": sorted(self.have)}, indent=1) + "\n"

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        """That of a directory; None where there is none that can be read."""
        try:
            data: dict[str, Any] = json.loads((directory / RECORD_NAME).read_bytes())
            files = {str(name): int(size) for name, size in data["files"].items()}
            subsets = [
                Subset(
                    str(item["name"]),
                    bool(item["default"]),
                    {str(split): [str(pattern) for pattern in patterns] for split, patterns in item["splits"].items()},
                )
                for item in data["subsets"]
            ]
            have = frozenset(str(name) for name in data["have"])
            if not all(map(is_safe_name, files)):
                return None
            return cls(str(data["repository"]), str(data["commit"]), files, subsets, have & files.keys())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


@dataclass(frozen=True)
class Fetched:
    """An entry that is on this machine.

    Args:
        entry: The entry, with its commit.
        directory: Where the repository's files are.
        files: Those that it takes, in order.
        reason: Which they are, in a sentence.
    """

    entry: HubEntry
    directory: Path
    files: tuple[Path, ...]
    reason: str


def repository_dir(entry: HubEntry) -> Path:
    """The directory of a dataset's repository, whether or not it exists."""
    return datasets_dir() / entry.directory_name


def find_fetched(entry: HubEntry) -> Fetched:
    """What an entry takes, on this machine.

    Raises:
        NotFetchedError: If it, or one of its files, is not here.
        UserError: If it takes nothing that can be read; see :func:`~core.hub.selection.select`.
    """
    commit = known_commit(entry)
    directory = repository_dir(entry) / commit
    record = Record.read(directory) if commit else None
    if record is None:
        raise NotFetchedError(entry)
    selection = select_files(entry, record)
    missing = [name for name in selection.names if not is_here(directory, record, name)]
    if missing:
        few = f"{one_line(missing[0], 120)} is missing" if len(missing) == 1 else f"{len(missing)} files are missing"
        raise NotFetchedError(entry, f"{entry} is not whole on this machine: {few}.")
    return Fetched(entry.at(commit), directory, tuple(directory / name for name in selection.names), selection.reason)


def is_fetched(entry: str | Path) -> bool:
    """Whether all that an entry takes is on this machine."""
    try:
        find_fetched(parse_dataset(entry))
    except UserError:
        return False
    return True


def select_files(entry: HubEntry, record: Record) -> Selection:
    """The files of a repository that an entry takes; see :func:`~core.hub.selection.select`."""
    return select(entry, data_names(record.files), record.subsets)


def is_here(directory: Path, record: Record, name: str) -> bool:
    """Whether a file has been fetched and has its size."""
    try:
        return name in record.have and os.stat(directory / name).st_size == record.files[name]
    except OSError:
        return False


def known_commit(entry: HubEntry) -> str:
    """The commit that an entry's revision was when it was last fetched; empty where it never was."""
    if entry.commit:
        return entry.commit
    revision = entry.revision or DEFAULT_REVISION
    if (commit := read_refs(entry).get(revision)) is not None:
        return commit
    try:
        names = os.listdir(repository_dir(entry))
    except OSError:
        return ""
    short = [name for name in names if is_commit(name) and len(revision) >= _SHORT and name.startswith(revision)]
    return short[0] if len(short) == 1 else ""


def read_refs(entry: HubEntry) -> dict[str, str]:
    """Revision to commit, as last fetched."""
    try:
        refs = json.loads((repository_dir(entry) / REFS_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    found = refs.items() if isinstance(refs, dict) else ()
    return {name: commit for name, commit in found if isinstance(commit, str) and is_commit(commit)}


def note_ref(entry: HubEntry, commit: str) -> None:
    """Remember which commit an entry's revision is.

    Raises:
        OSError: If it cannot be written.
    """
    if not entry.commit:
        refs = {**read_refs(entry), entry.revision or DEFAULT_REVISION: commit}
        write_atomic(repository_dir(entry) / REFS_NAME, json.dumps(refs, indent=1) + "\n")


def pinned(text: str) -> str:
    """An entry of the Hub with the commit that is on this machine, so that a run can be repeated; others as they are.

    What is not here, or is no entry, is left as it is, to be refused where it is opened.
    """
    if not is_hub_entry(text):
        return text
    try:
        entry = parse_dataset(text)
    except UserError:
        return text
    commit = known_commit(entry)
    return str(entry.at(commit) if commit else entry)

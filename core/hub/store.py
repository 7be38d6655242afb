"""Hub store: datasets of a hub on this machine, and the files of each that are present. Never uses the network.

``datasets/<owner>--<name>/`` holds ``refs.json`` (revision to commit, as last fetched) and a directory for each commit.
A commit's directory holds the files under their names in the repository, and ``localtune.json``, written last, which
lists the files of the repository and the completely fetched files. A file that it does not list counts as missing.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from core.atomic import write_atomic
from core.errors import UserError
from core.hub.listing import is_size
from core.hub.selection import Selection, Subset, data_names, select
from core.hub_uri import DEFAULT_REVISION, HubEntry, is_commit, is_hub_entry, is_safe_name, parse_dataset
from core.models.description import RECORD_NAME
from core.paths import datasets_dir
from core.small_files import read_json
from core.text import one_line


def safe_path(root: Path, *names: str) -> Path:
    """Path of a file with these names below a directory, whether or not it exists.

    Only the directory itself may be a link: users choose its disk. A link below it could redirect reads and writes to
    any file.

    Args:
        root: The directory.
        names: Path components below it; each may contain slashes.

    Raises:
        UserError: If a name would lead out of the directory, or there is a link on the way.
    """
    path = root.joinpath(*names)
    if not all(map(is_safe_name, names)):
        raise UserError(f"{one_line(str(path), 300)} is not written, as its name is unsafe.", "Use another repository.")
    place = str(root)
    for part in "/".join(names).split("/"):
        place = os.path.join(place, part)
        if os.path.islink(place):
            raise UserError(
                f"{one_line(place, 300)} is a link, which nothing is written or read through.",
                f"Remove it; only {one_line(str(root), 300)} itself may be one.",
            )
    return path


REFS_NAME = "refs.json"
#: Directory for partial files.
PARTIAL_NAME = ".partial"

_SHORT = 7
# Size limits in bytes of refs.json and of localtune.json, which may be twice as large as the hub's listing.
_REFS_LIMIT = 4 << 20
_RECORD_LIMIT = 128 << 20


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
    """Record of a repository at one commit.

    Args:
        repository: ``owner/name``.
        commit: The commit.
        files: Its data files and their sizes.
        subsets: Subsets declared in its card.
        have: Files on this machine.
    """

    repository: str
    commit: str
    files: Mapping[str, int]
    subsets: Sequence[Subset] = ()
    have: frozenset[str] = frozenset()

    def to_json(self) -> str:
        """JSON for ``localtune.json``."""
        return json.dumps({"source": "hub", **asdict(self), "have": sorted(self.have)}, indent=1) + "\n"

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        """The record in a commit's directory; None if there is none, or if it is of another commit."""
        try:
            data: dict[str, Any] = read_json(directory / RECORD_NAME, _RECORD_LIMIT)
            files, have = _files(data["files"]), _texts(data["have"])
            subsets = [_subset(item) for item in data["subsets"]]
            repository, commit = _texts([data["repository"], data["commit"]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if commit != directory.name:
            return None
        return cls(repository, commit, files, subsets, frozenset(have) & files.keys())


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("no list of texts")
    return value


def _files(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not all(is_safe_name(name) and is_size(size) for name, size in value.items()):
        raise TypeError("no names and sizes of files")
    return value


def _subset(value: Any) -> Subset:
    (name,) = _texts([value["name"]])
    splits = {key: _texts(item) for key, item in value["splits"].items()}
    if not splits:
        raise ValueError("a subset without a split")
    return Subset(name, value["default"] is True, splits)


@dataclass(frozen=True)
class Fetched:
    """An entry that is on this machine.

    Args:
        entry: The entry, with its commit.
        directory: Directory of the repository's files.
        files: Files that it takes, in order.
        reason: Description of the selection, in a sentence.
    """

    entry: HubEntry
    directory: Path
    files: tuple[Path, ...]
    reason: str


def repository_dir(entry: HubEntry) -> Path:
    """The directory of a dataset's repository, whether or not it exists."""
    return datasets_dir() / entry.directory_name


def find_fetched(entry: HubEntry) -> Fetched:
    """Find the files of an entry on this machine.

    Raises:
        NotFetchedError: If it, or any of its files, is not on this machine.
        UserError: If it selects no readable file (see :func:`~core.hub.selection.select`), or a link leads out of its
            directory.
    """
    commit = known_commit(entry)
    if not commit:
        raise NotFetchedError(entry)
    repository = repository_dir(entry)
    directory = safe_path(repository, commit)
    record = Record.read(directory)
    if record is None:
        raise NotFetchedError(entry)
    selection = select_files(entry, record)
    for parent in {PurePosixPath(name).parent for name in selection.names}:
        safe_path(repository, commit, *parent.parts)
    missing = [name for name in selection.names if not is_here(directory, record, name)]
    if missing:
        few = f"{one_line(missing[0], 120)} is missing" if len(missing) == 1 else f"{len(missing)} files are missing"
        raise NotFetchedError(entry, f"{entry} is not whole on this machine: {few}.")
    return Fetched(entry.at(commit), directory, tuple(directory / name for name in selection.names), selection.reason)


def is_fetched(entry: str | Path) -> bool:
    """True if all files that an entry takes are on this machine."""
    try:
        find_fetched(parse_dataset(entry))
    except UserError:
        return False
    return True


def select_files(entry: HubEntry, record: Record) -> Selection:
    """Select the files of a repository that an entry takes; see :func:`~core.hub.selection.select`."""
    return select(entry, data_names(record.files), record.subsets)


def is_here(directory: Path, record: Record, name: str) -> bool:
    """True if a file has been fetched, and is a regular file of its size, not a link."""
    try:
        status = os.stat(directory / name, follow_symlinks=False)
    except OSError:
        return False
    return name in record.have and stat.S_ISREG(status.st_mode) and status.st_size == record.files[name]


def known_commit(entry: HubEntry) -> str:
    """Commit of an entry's revision when it was last fetched; empty if never."""
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
    """Revisions to commits, as last fetched."""
    try:
        refs = read_json(repository_dir(entry) / REFS_NAME, _REFS_LIMIT)
    except (OSError, ValueError):
        return {}
    found = refs.items() if isinstance(refs, dict) else ()
    return {name: commit for name, commit in found if isinstance(commit, str) and is_commit(commit)}


def note_ref(entry: HubEntry, commit: str) -> None:
    """Record the commit of an entry's revision.

    Raises:
        OSError: If it cannot be written.
    """
    if not entry.commit:
        refs = {**read_refs(entry), entry.revision or DEFAULT_REVISION: commit}
        write_atomic(repository_dir(entry) / REFS_NAME, json.dumps(refs, indent=1) + "\n")


def pinned(text: str) -> str:
    """Pin an entry of the hub to the commit on this machine, so that a run can be repeated; other texts are unchanged.

    A missing or invalid entry is unchanged too, and refused when it is opened.
    """
    if not is_hub_entry(text):
        return text
    try:
        entry = parse_dataset(text)
    except UserError:
        return text
    commit = known_commit(entry)
    return str(entry.at(commit) if commit else entry)

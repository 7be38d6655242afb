"""Data sources: files of a dataset with format and columns, and the registry files that name them.

A downloaded registry is not trusted: it may only name files of the same download.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core import paths
from core.data.files.reader import all_rows, open_files, open_rows
from core.data.files.rows import Row, RowFile
from core.data.formats.detect import SAMPLE, Detection, choose
from core.data.formats.mapping import ColumnMap
from core.errors import UserError
from core.hub.store import find_fetched
from core.hub_uri import HubEntry
from core.models.find import hub_cache_dir
from core.path_kind import YAML_SUFFIXES
from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.small_files import read_small
from core.text import one_line
from core.yaml.file import read_yaml

#: Largest registry file read, in bytes.
REGISTRY_LIMIT = 4 << 20


@dataclass(frozen=True)
class DataSource:
    """A source of rows with its format and columns.

    Args:
        name: Name in the configuration.
        path: Path for :func:`~core.data.files.reader.open_rows`.
        format: Format of its rows, or ``auto``.
        columns: The column mapping, if the configuration has one.
        limit: Most rows used; None for all.
        files: Files of the directory ``path`` to read; empty to let ``path`` decide.
        note: A sentence on the location of its files.
    """

    name: str
    path: Path
    format: str = "auto"
    columns: ColumnMap | None = None
    limit: int | None = None
    files: tuple[Path, ...] = ()
    note: str = ""

    def open(self) -> RowFile:
        """Open the source for paging; see :func:`~core.data.files.reader.open_rows`."""
        numbered = self.columns.numbers if self.columns is not None else ()
        if self.files:
            return open_files(self.path, self.files, numbered=numbered)
        return open_rows(self.path, numbered=numbered)

    def rows(self, file: RowFile | None = None) -> Iterator[Row]:
        """All rows in order, up to ``limit``; see :func:`~core.data.files.reader.all_rows`.

        Args:
            file: The source, opened; it is closed at the end. None to open it.
        """
        with file or self.open() as opened:
            yield from itertools.islice(all_rows(opened), self.limit)

    def count(self, file: RowFile) -> int:
        """Rows used of the opened file, as far as it is indexed."""
        return file.count_known if self.limit is None else min(file.count_known, self.limit)

    def recognize(self, file: RowFile, shown: str = "") -> Detection:
        """Detect the format from the first rows of the opened file; ``shown`` is its name in messages."""
        return self.detect(file.rows(0, SAMPLE if self.limit is None else min(SAMPLE, self.limit)), shown, file.note)

    def detect(self, rows: Iterable[Row], shown: str = "", note: str = "", *, asks: bool = True) -> Detection:
        """Detect the format from the first rows; see :func:`~core.data.formats.detect.choose`.

        Args:
            rows: The first rows.
            shown: Name of the source in messages.
            note: Note of the file (:attr:`RowFile.note <core.data.files.rows.RowFile.note>`).
            asks: As for :func:`~core.data.formats.detect.detect`.
        """
        found = choose(rows, self.format, shown or one_line(self.name), self.columns, asks=asks)
        return replace(found, reason=" ".join(filter(None, (found.reason, note, self.note))))


def hub_source(entry: HubEntry, source: DataSource) -> DataSource:
    """A source with the files selected by a Hub entry.

    Raises:
        NotFetchedError: If they are not on this machine.
        UserError: If it selects no readable file.
    """
    fetched = find_fetched(entry)
    if len(fetched.files) == 1:
        return replace(source, path=fetched.files[0], note=fetched.reason)
    return replace(source, path=fetched.directory, files=fetched.files, note=fetched.reason)


def load_registry(path: Path) -> Any:
    """Parse a registry file, JSON or YAML, in the sandbox; blocks.

    Raises:
        UserError: If it cannot be read.
    """
    if path.suffix.lower() in YAML_SUFFIXES:
        return read_yaml(path).values
    return sandboxed(_load_json, one_line(str(path)), rights=reading(path))(path)


def _load_json(path: Path) -> Any:
    shown = one_line(str(path))
    try:
        return json.loads(read_small(path, REGISTRY_LIMIT).decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown} is not JSON: {one_line(str(error), 200)}.", "Fix it.") from error


def refuse_unknown_keys(where: str, given: Iterable[Any], known: Collection[str], meant: Mapping[str, str]) -> None:
    """Refuse unknown keys, and suggest the key that was meant.

    Raises:
        UserError: For the first unknown key.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:40], known, n=1, cutoff=0.6)
            guess = meant.get(str(key)) or (near[0] if near else None)
            hint = f"Did you mean {guess}?" if guess else f"The keys are {', '.join(sorted(known))}."
            raise UserError(f"{where} has the unknown key {one_line(str(key), 40)}.", hint)


def note_outside(registry: Path, named: Path, where: str) -> str:
    """Note on a file outside the directory of the registry that names it; empty for a file inside.

    A user's own registry may name any file; the note is shown with the rows, in case somebody else wrote the registry.
    A downloaded registry is not trusted: it may only name files of the same download. Links are resolved.

    Args:
        registry: Path of the registry, as given.
        named: A file or directory named by an entry.
        where: The entry, for messages.

    Raises:
        UserError: If the registry was downloaded and the file is not part of that download.
    """
    try:
        target = os.path.realpath(named)
    except ValueError as error:  # a NUL, or invalid Unicode
        raise UserError(f"{where} names {one_line(str(named), 200)}, which no file is called.", "Fix it.") from error
    if (download := _download_of(registry)) is not None:
        if _is_below(target, download):
            return ""
        raise UserError(
            f"{where} names {one_line(target, 200)}, which did not come with the download that the registry is from.",
            "Copy the registry into a directory of yours if that file is meant.",
        )
    if _is_below(target, os.path.realpath(registry.parent)):
        return ""
    return f"{one_line(registry.name, 60)} names a file outside of its directory: {one_line(target, 200)}."


def _download_of(registry: Path) -> str | None:
    """Directory of the repository that a registry was downloaded with; None for the user's own registry."""
    for downloads in (paths.datasets_dir(), paths.models_dir(), hub_cache_dir()):
        root = os.path.realpath(downloads)
        for place in (os.path.realpath(registry), os.path.realpath(registry.parent)):
            if _is_below(place, root) and place != root:
                return os.path.join(root, Path(place).relative_to(root).parts[0])
    return None


def _is_below(path: str, directory: str) -> bool:
    return Path(path).is_relative_to(directory)

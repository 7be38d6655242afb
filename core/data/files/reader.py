"""Dataset reader: opens data files, and directories of them as one dataset."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from core.data.files.rows import NoRowsError, Progress, Row, RowFile
from core.data.files.source import cannot_open, open_source
from core.data.files.text_rows import TextRows
from core.errors import UserError
from core.hub.selection import MOST_SHARDS, SPLIT_NAMES, ending, holds_rows, natural, split_of
from core.small_files import read_small
from core.text import one_line

_BATCH = 256


def open_rows(path: Path, *, numbered: Collection[str] = ()) -> RowFile:
    """Open a dataset and index its first rows, so that a page can be shown at once.

    Args:
        path: JSON Lines, JSON (an array, an object with an array, an object of arrays), CSV, TSV, text, Parquet or
            Arrow, also compressed with gzip or zstd; a directory of such files, or ``directory#split`` for one split;
            a directory saved by ``datasets``.
        numbered: Numbers of columns wanted of a CSV without a header, from 1; a CSV that has columns of these names has
            a header.

    Raises:
        UserError: If it is missing, special, unreadable, empty, damaged, of an unsupported kind, or without rows.
    """
    path, split = split_reference(path)
    if os.path.isdir(path):  # not the method, which raises without permission
        return open_files(path, list_shards(path, split), numbered=numbered)
    return TextRows(open_source(path), numbered=numbered)


def open_files(directory: Path, files: Sequence[Path], *, numbered: Collection[str] = ()) -> RowFile:
    """Open files of a directory, in the given order, as one dataset.

    Raises:
        UserError: As :func:`open_rows`.
    """
    return ShardedRows(directory, list(files), numbered=numbered)


def all_rows(file: RowFile) -> Iterator[Row]:
    """All rows of an open dataset, in order, read as needed; closes the dataset at the end.

    Raises:
        FileChangedError: If a file changes meanwhile.
        UserError: If it cannot be read.
    """
    with file:
        done = 0
        while True:
            while done < file.count_known:
                page = file.rows(done, _BATCH)
                done += len(page)
                yield from page
            if file.complete:
                return
            file.advance()


_DEEPEST = 4
#: Largest state file of a saved dataset, in bytes; it names the data files.
_STATE_LIMIT = 16 << 20


def list_shards(directory: Path, split: str = "") -> list[Path]:
    """The data files of a directory, in order.

    A directory saved by ``datasets`` lists its files. Otherwise all data files in it and below are taken, in natural
    order of their names. Links to directories are not followed. A file with the name of a data file that cannot be read
    is refused when opened, never skipped.

    Args:
        directory: The directory.
        split: Take only files with this split in their names (``train``, ``test``, ``validation``).

    Raises:
        UserError: If there are no files, too many, or files of several kinds or splits.
    """
    shown = one_line(str(directory))
    try:
        os.stat(directory / "state.json")
    except FileNotFoundError:
        pass  # most directories; this only refuses directories without permission
    except OSError as error:
        raise cannot_open(error, shown) from error
    if (directory / "dataset_dict.json").is_file() and not split:
        saved = sorted(entry.name for entry in directory.iterdir() if (entry / "state.json").is_file())
        if not saved:
            raise UserError(f"{shown} is a saved dataset without splits.", "Save it again.")
        raise UserError(f"{shown} holds the splits {', '.join(saved)}.", f"Name one: {shown}#{_first_choice(saved)}.")
    if (directory / "dataset_dict.json").is_file() and (directory / split / "state.json").is_file():
        return _saved_files(directory / split)
    if (directory / "state.json").is_file():
        return _saved_files(directory)
    found = _data_files(directory, shown)
    splits = {path: split_of(path.relative_to(directory)) for path in found}
    if split:
        wanted = SPLIT_NAMES.get(split, split)
        found = [path for path in found if splits[path] == wanted]
        if not found:
            raise UserError(f"{shown} has no file of the split '{one_line(split, 40)}'.", "Check the names in it.")
    names = sorted({splits[path] for path in found if splits[path]})
    if len(names) > 1:
        raise UserError(f"{shown} holds the splits {', '.join(names)}.", f"Name one: {shown}#{_first_choice(names)}.")
    if not found:
        raise UserError(f"{shown} is a directory without data files.", "Name a data file, or a directory of them.")
    endings = sorted({ending(path) for path in found})
    if len(endings) > 1:
        raise UserError(f"{shown} holds data files of several kinds ({', '.join(endings)}).", "Name one file in it.")
    return found


def _first_choice(splits: list[str]) -> str:
    """The split to suggest: ``train`` if there is one."""
    return "train" if "train" in splits else splits[0]


def split_reference(path: Path) -> tuple[Path, str]:
    """Directory and split of a reference ``directory#split``; any other path unchanged, with an empty split."""
    name, mark, split = path.name.rpartition("#")
    if not mark or os.path.exists(path):
        return path, ""
    directory = path.with_name(name) if name else path.parent
    return (directory, split) if os.path.isdir(directory) else (path, "")


class ShardedRows(RowFile):
    """The rows of several files, in order. Shards without rows are skipped.

    Args:
        path: The directory, for messages.
        shards: Its data files.
        numbered: As for :func:`open_rows`.

    Raises:
        UserError: If the first file cannot be read, or no file has rows.
    """

    def __init__(self, path: Path, shards: list[Path], *, numbered: Collection[str] = ()) -> None:
        self.path, self._numbered = path, numbered
        self._waiting = list(reversed(shards))
        self.size = sum(map(_size_of, shards))
        self._files: list[RowFile] = []
        self._bases: list[int] = []
        self._lock = threading.Lock()
        self._indexing = threading.Lock()
        self._closed = threading.Event()
        self._open_next()
        if not self._files:
            raise NoRowsError(f"{one_line(str(path))} holds no rows.", "Give files with at least one row.")
        self.kind, self.columns, self.note = self._files[0].kind, self._files[0].columns, self._files[0].note

    @property
    def count_known(self) -> int:
        """See :class:`~core.data.files.rows.RowFile`."""
        with self._lock:
            return self._bases[-1] + self._files[-1].count_known

    @property
    def complete(self) -> bool:
        """See :class:`~core.data.files.rows.RowFile`."""
        return not self._waiting and self._files[-1].complete

    def advance(self) -> tuple[int, int]:
        """See :class:`~core.data.files.rows.RowFile`."""
        before = sum(file.size for file in self._files[:-1])
        if self._closed.is_set():
            return self.size, self.size
        if not self._files[-1].complete:
            return before + self._files[-1].advance()[0], self.size
        self._open_next()
        return before, self.size

    def index(self, progress: Progress | None = None) -> None:
        """See :class:`~core.data.files.rows.RowFile`."""
        with self._indexing:
            while not self.complete and not self._closed.is_set():
                if not self._files[-1].complete:
                    self._index_last(progress)
                self._open_next()

    def rows(self, start: int, count: int) -> list[Row]:
        """See :class:`~core.data.files.rows.RowFile`."""
        first, last = max(start, 0), min(max(start + count, 0), self.count_known)
        found: list[Row] = []
        while first < last:
            file, base = self._at(first)
            page = file.rows(first - base, last - first)
            if not page:
                break
            found += [self._placed(row, file, base) for row in page]
            first += len(page)
        return found

    def row(self, index: int, limit: int | None = None) -> Row:
        """See :class:`~core.data.files.rows.RowFile`."""
        if not 0 <= index < self.count_known:
            raise IndexError(index)
        file, base = self._at(index)
        return self._placed(file.row(index - base, limit), file, base)

    def close(self) -> None:
        """See :class:`~core.data.files.rows.RowFile`."""
        with self._lock:
            self._closed.set()
            for file in self._files:
                file.close()

    def _index_last(self, progress: Progress | None) -> None:
        before = sum(file.size for file in self._files[:-1])

        def report(done: int, _: int) -> None:
            if progress is not None:
                progress(before + done, self.size)

        self._files[-1].index(report)

    def _open_next(self) -> None:
        """Open the next shard with rows, if any."""
        while self._waiting and not self._closed.is_set():
            try:
                file = TextRows(open_source(self._waiting[-1]), numbered=self._numbered)
            except NoRowsError:
                self._waiting.pop()
                continue
            with self._lock:
                if self._closed.is_set():
                    file.close()
                    return
                self._bases.append(self._bases[-1] + self._files[-1].count_known if self._files else 0)
                self._files.append(file)
            self._waiting.pop()
            return

    def _at(self, index: int) -> tuple[RowFile, int]:
        with self._lock:
            position = bisect_right(self._bases, index) - 1
            return self._files[position], self._bases[position]

    def _placed(self, row: Row, file: RowFile, base: int) -> Row:
        name = str(file.path.relative_to(self.path)) if file.path.is_relative_to(self.path) else file.path.name
        return dataclasses.replace(row, index=base + row.index, file=name)


def _saved_files(directory: Path) -> list[Path]:
    """Files listed in the state of a dataset saved by ``datasets``."""
    state = directory / "state.json"
    try:
        listed = json.loads(read_small(state, _STATE_LIMIT))["_data_files"]
        names = [str(item["filename"]) for item in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{one_line(str(state))} is not a state of a saved dataset.", "Save the dataset again."
        ) from error
    if not names:
        raise UserError(f"{one_line(str(directory))} is a saved dataset without files.", "Save it again.")
    if any(Path(name).name != name for name in names):
        raise UserError(f"{one_line(str(state))} names files outside its directory.", "Save the dataset again.")
    _refuse_many(len(names), one_line(str(directory)))
    return [directory / name for name in names]


def _data_files(directory: Path, shown: str) -> list[Path]:
    found: list[Path] = []
    waiting = [(directory, 0)]
    while waiting:
        place, depth = waiting.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise cannot_open(error, one_line(str(place))) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < _DEEPEST:
                    waiting.append((Path(entry.path), depth + 1))
            elif holds_rows(entry.name):
                found.append(Path(entry.path))
                _refuse_many(len(found), shown)
    return sorted(found, key=natural)


def _refuse_many(count: int, shown: str) -> None:
    if count > MOST_SHARDS:
        raise UserError(f"{shown} holds more than {MOST_SHARDS} data files.", "Join some of them.")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise cannot_open(error, one_line(str(path))) from error

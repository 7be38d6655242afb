"""Shared datasets: each file is opened, unpacked and indexed once per process.

Every caller gets its own handle. The first handle asked to index does the work while the others wait and receive its
progress; if it is closed early, the next handle continues. The last handle closes the file. Handles share a file only
if device, inode, size and modification time are the same; a file that has been replaced or changed is opened anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from core.data.files.reader import list_shards, open_files, open_rows, split_reference
from core.data.files.rows import Progress, Row, RowFile
from core.data.files.source import Identity
from core.errors import UserError
from core.text import one_line

_Key: TypeAlias = tuple[tuple[str, Identity], ...]


class _LeftError(Exception):
    """The handle that was indexing has been closed."""


class _Shared:
    """State shared by the handles of one file."""

    def __init__(self, key: _Key | None) -> None:
        self.key = key
        self.file: RowFile | None = None
        self.opening = threading.Lock()
        self.handles = 0
        self.listeners: list[Progress] = []
        self.turn = threading.Condition()
        self.is_indexed_by_someone = False

    def tell(self, done: int, total: int) -> None:
        """Report progress to all handles waiting for the index."""
        with self.turn:
            listeners = tuple(self.listeners)
        for listener in listeners:
            listener(done, total)


_lock = threading.Lock()
_known: dict[_Key, _Shared] = {}


def open_shared(path: Path, files: Sequence[Path] = ()) -> RowFile:
    """Open a dataset like :func:`~core.data.files.reader.open_rows`, shared with other handles in this process.

    Args:
        path: As for :func:`~core.data.files.reader.open_rows`, or the directory of ``files``.
        files: Files of the directory to read; empty to let ``path`` decide.

    Raises:
        UserError: As :func:`~core.data.files.reader.open_rows`.
    """
    key = _key_of(path, files)
    with _lock:
        shared = (_known.get(key) if key is not None else None) or _Shared(key)
        if key is not None:
            _known[key] = shared
        shared.handles += 1
    try:
        with shared.opening:
            if shared.file is None:
                shared.file = open_files(path, files) if files else open_rows(path)
            return SharedRows(shared, shared.file)
    except BaseException:
        _let_go(shared)
        raise


def _key_of(path: Path, files: Sequence[Path]) -> _Key | None:
    """Current identities of the files; None if a file cannot be read, which opening it reports."""
    try:
        directory, split = split_reference(path)
        names = list(files) or (list_shards(directory, split) if directory.is_dir() else [path])
        return tuple((str(name.absolute()), Identity.of(name.stat())) for name in names)
    except (OSError, ValueError, UserError):
        return None


def _let_go(shared: _Shared) -> None:
    with _lock:
        shared.handles -= 1
        if shared.handles:
            return
        if shared.key is not None and _known.get(shared.key) is shared:
            del _known[shared.key]
    if shared.file is not None:
        shared.file.close()


class SharedRows(RowFile):
    """Handle of a shared file, made by :func:`open_shared`; other handles survive its closing."""

    def __init__(self, shared: _Shared, file: RowFile) -> None:
        self.path, self.kind, self.columns, self.size = file.path, file.kind, file.columns, file.size
        self._shared = shared
        self._file = file
        self._closing = threading.Lock()
        self._is_closed = False

    @property
    def count_known(self) -> int:
        """See :class:`~core.data.files.rows.RowFile`."""
        return self._file.count_known

    @property
    def complete(self) -> bool:
        """See :class:`~core.data.files.rows.RowFile`."""
        return self._file.complete

    def advance(self) -> tuple[int, int]:
        """See :class:`~core.data.files.rows.RowFile`."""
        if not self._take_turn():
            return self.size, self.size
        try:
            return self._file.advance()
        finally:
            self._end_turn()

    def index(self, progress: Progress | None = None) -> None:
        """See :class:`~core.data.files.rows.RowFile`."""
        shared = self._shared
        if progress is not None:
            with shared.turn:
                shared.listeners.append(progress)
        try:
            if self._take_turn():
                try:
                    self._file.index(self._report(shared.tell))
                except _LeftError:
                    return
                finally:
                    self._end_turn()
        finally:
            if progress is not None:
                with shared.turn:
                    shared.listeners.remove(progress)

    def _report(self, tell: Progress) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if self._is_closed:
                raise _LeftError
            tell(done, total)

        return report

    def _take_turn(self) -> bool:
        """Wait until no other handle is indexing; returns False once this handle is closed."""
        shared = self._shared
        with shared.turn:
            shared.turn.wait_for(lambda: self._is_closed or not shared.is_indexed_by_someone)
            if self._is_closed:
                return False
            shared.is_indexed_by_someone = True
            return True

    def _end_turn(self) -> None:
        with self._shared.turn:
            self._shared.is_indexed_by_someone = False
            self._shared.turn.notify_all()

    def rows(self, start: int, count: int) -> list[Row]:
        """See :class:`~core.data.files.rows.RowFile`."""
        self._refuse_closed()
        return self._file.rows(start, count)

    def row(self, index: int, limit: int | None = None) -> Row:
        """See :class:`~core.data.files.rows.RowFile`."""
        self._refuse_closed()
        return self._file.row(index, limit)

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise UserError(f"{one_line(str(self.path))} has been closed.", "Open it again.")

    def close(self) -> None:
        """See :class:`~core.data.files.rows.RowFile`."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        with self._shared.turn:
            self._shared.turn.notify_all()
        _let_go(self._shared)

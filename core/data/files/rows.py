"""Dataset rows and their interface: by page or in order, from any kind of file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from core.data.files.source import Kind
from core.errors import UserError

Progress = Callable[[int, int], None]


class NoRowsError(UserError):
    """The file can be read but has no rows."""


@dataclass(frozen=True)
class Row:
    """A row as stored in the file.

    Args:
        index: Number of the row, from 0; blank lines are not counted.
        line: Line on which it begins, from 1; 0 in a columnar file, and for a row that shares its line with others.
        data: The columns; None if the row cannot be read.
        error: Reason why it cannot be read, one sentence; empty if it can. It may quote the row: sanitize it.
        code: Code of the error, as in :class:`~core.data.conversation.RowError`; empty without an error.
        raw: Beginning of an unreadable row, with undecodable bytes replaced; empty without an error. Sanitize it.
        file: Shard of a dataset of several files; empty for a single file.
    """

    index: int
    line: int
    data: dict[str, Any] | None
    error: str = ""
    code: str = ""
    raw: str = ""
    file: str = ""

    @property
    def place(self) -> str:
        """Position of the row for messages: its line, or its number if it has no line of its own."""
        return f"line {self.line}" if self.line else f"row {self.index + 1}"


class RowFile(ABC):
    """An open dataset, made by :func:`core.data.files.reader.open_rows`; may be paged while it is indexed.

    ``rows`` may be called from one thread while ``index`` runs in another. Close it, or use it as a context manager;
    closing ends a running ``index``.
    """

    path: Path
    kind: Kind
    """``jsonl``, ``json`` (an array), ``csv`` or ``text`` (a row per line); for packed files, of the content."""
    columns: list[str]
    """Header of a CSV; empty for other kinds."""
    size: int
    """Size on disk in bytes."""
    note: str
    """Sentences on how the file is read, if that is unusual; empty otherwise."""

    @property
    @abstractmethod
    def count_known(self) -> int:
        """Number of rows indexed so far."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """True if ``count_known`` is final."""

    @abstractmethod
    def advance(self) -> tuple[int, int]:
        """Index more rows; blocks for milliseconds. Does nothing when complete or closed.

        Returns:
            Bytes of the files indexed, and their total.

        Raises:
            FileChangedError: If a file was replaced or changed.
            UserError: If it cannot be read.
        """

    @abstractmethod
    def index(self, progress: Progress | None = None) -> None:
        """Index all rows; blocks, so call it from a thread. Returns early, without an error, when closed.

        Args:
            progress: Called after each megabyte with the bytes done and the total.

        Raises:
            FileChangedError: If a file was replaced or changed.
            UserError: If it cannot be read, or has no rows.
        """

    @abstractmethod
    def rows(self, start: int, count: int) -> list[Row]:
        """At most ``count`` indexed rows, from ``start`` on.

        Raises:
            FileChangedError: If a file was replaced or changed.
            UserError: If it cannot be read.
        """

    @abstractmethod
    def row(self, index: int, limit: int | None = None) -> Row:
        """A row by number; ``limit`` replaces the limit on its length, in bytes.

        Raises:
            IndexError: If it is not indexed (yet).
            UserError: As :meth:`rows`.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the files; may be called twice, and from any thread."""

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

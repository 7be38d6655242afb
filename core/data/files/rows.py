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
    """One row as it is in the file.

    Args:
        index: From 0, blank lines not counted.
        line: Line of the file it begins on, from 1; 0 in a table, which has no lines, and if it shares its line with
            other rows, as in an array written on one line.
        data: The columns; None if the row cannot be read.
        error: Why it cannot be read, one sentence; empty if it can. It may quote the row: sanitize it.
        code: The kind of error, as in :class:`~core.data.conversation.RowError`; empty without an error.
        raw: The beginning of an unreadable row, undecodable bytes replaced; empty without an error. Sanitize it.
        file: The shard of a dataset of several files; empty for a single file.
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
        """Position of the row for messages: its line, or its number if that is more precise."""
        return f"line {self.line}" if self.line else f"row {self.index + 1}"


class RowFile(ABC):
    """An open dataset: made by :func:`core.data.files.reader.open_rows`, indexed in the background, paged meanwhile.

    ``rows`` may be called from one thread while ``index`` runs in another. Close it, or use it as a context manager;
    closing ends a running ``index``.
    """

    path: Path

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """``jsonl``, ``json`` (an array), ``csv`` or ``text`` (one row per line); of packed files, the kind of the
        content.
        """

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The header of a CSV; empty for the other kinds."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Size on disk in bytes."""

    @property
    @abstractmethod
    def count_known(self) -> int:
        """Number of rows indexed so far."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether ``count_known`` is the final count."""

    @abstractmethod
    def advance(self) -> tuple[int, int]:
        """Index some more rows; blocks for milliseconds. Does nothing when complete or closed.

        Returns:
            Bytes of the files done, and their total.

        Raises:
            FileChangedError: If a file is no longer the one that was opened.
            UserError: If it cannot be read.
        """

    @abstractmethod
    def index(self, progress: Progress | None = None) -> None:
        """Index all rows; blocks, so call it from a thread. Ends early, without an error, when the file is closed.

        Args:
            progress: Called after each megabyte with the bytes done and the total.

        Raises:
            FileChangedError: If a file is no longer the one that was opened.
            UserError: If it cannot be read, or has no rows at all.
        """

    @abstractmethod
    def rows(self, start: int, count: int) -> list[Row]:
        """Rows from ``start`` on, at most ``count``, among those indexed so far.

        Raises:
            FileChangedError: If a file is no longer the one that was opened.
            UserError: If it cannot be read.
        """

    @abstractmethod
    def row(self, index: int, limit: int | None = None) -> Row:
        """One row, parsed up to another ``limit`` in bytes.

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

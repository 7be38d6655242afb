"""Rows of a dataset file: any page at once, whatever its size, or all of them in order.

Files are read with ``pread``, never mapped: a mapped file that another process truncates kills its reader.
"""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from core.data.scanners import ArrayScanner, CsvScanner, LineScanner, Scanner, Spans
from core.data.source import FileChangedError, Identity, Kind, open_source
from core.errors import UserError
from core.text import one_line
from core.units import format_bytes

#: Longest row that is parsed, in bytes; a longer one is reported with its size.
ROW_LIMIT = 8 << 20
#: How much of a row that cannot be parsed is kept to be shown, in characters.
RAW_LIMIT = 4000

_CHUNK = 1 << 20
# Indexed before the first page is shown: what comes first, rows or bytes.
_FIRST_ROWS = 512
_FIRST_BYTES = 8 << 20
_BATCH = 256


@dataclass(frozen=True)
class Row:
    """One row as the file has it.

    Args:
        index: From 0, blank lines not counted.
        line: Line of the file it begins on, from 1.
        data: The columns; None where the row cannot be read.
        error: Why it cannot be read, one sentence; empty where it can. It may quote the row: sanitize it.
        code: The kind of error, as in :class:`~core.data.conversation.RowError`; empty without one.
        raw: The beginning of an unreadable row, undecodable bytes replaced; empty without an error. Sanitize it.
    """

    index: int
    line: int
    data: dict[str, Any] | None
    error: str = ""
    code: str = ""
    raw: str = ""


class RowFile:
    """An open dataset: made by :func:`open_rows`, indexed in the background, paged meanwhile.

    ``rows`` may be called from one thread while ``index`` runs in another. Close it, or use it as a context manager;
    closing ends a running ``index``.
    """

    def __init__(self, path: Path, row_limit: int = ROW_LIMIT) -> None:
        self.path = path
        self.row_limit = row_limit
        self._source = open_source(path)
        self._lock = threading.Lock()
        self._indexing = threading.Lock()
        self._closed = False
        self._spans = Spans()
        self._offset = self._source.start
        self._rest = b""
        self._complete = False
        self._header: list[str] = []
        self._scanner: Scanner = _make_scanner(self._source.kind, self._spans, self._source.delimiter)
        try:
            while not self._complete and len(self._spans) < _FIRST_ROWS and self._offset < _FIRST_BYTES:
                self._step()
            self._refuse_no_rows()
            if self.kind == "csv":
                self._header = self._read_header()
        except BaseException:
            self.close()
            raise

    @property
    def kind(self) -> Kind:
        """``jsonl``, ``json`` (an array) or ``csv``."""
        return self._source.kind

    @property
    def columns(self) -> list[str]:
        """The header of a CSV; empty for the other kinds."""
        return list(self._header)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._source.size

    @property
    def count_known(self) -> int:
        """Rows found so far."""
        return max(len(self._spans) - self._skip, 0)

    @property
    def complete(self) -> bool:
        """Whether ``count_known`` is the whole count."""
        return self._complete

    @property
    def _skip(self) -> int:
        return 1 if self.kind == "csv" else 0

    def index(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Find all rows; blocks, so call it from a thread. Ends early, without an error, when the file is closed.

        Args:
            progress: Called after each megabyte with the bytes done and the bytes in all.

        Raises:
            FileChangedError: If the file is no longer the one that was opened.
            UserError: If it cannot be read, or has no rows at all.
        """
        with self._indexing:
            while not self._complete and not self._closed:
                self._step()
                if progress is not None:
                    progress(min(self._offset, self.size), self.size)
            if not self._closed:
                self._refuse_no_rows()

    def rows(self, start: int, count: int) -> list[Row]:
        """The rows from ``start`` on, at most ``count``, of those found so far.

        Raises:
            FileChangedError: If the file is no longer the one that was opened.
            UserError: If it cannot be read.
        """
        first = max(start, 0)
        last = min(max(start + count, 0), self.count_known)
        if first >= last:
            return []
        self._refuse_changed()
        return [self._row(index) for index in range(first, last)]

    def row(self, index: int, limit: int | None = None) -> Row:
        """One row, parsed up to another ``limit`` in bytes.

        Raises:
            IndexError: If it has not been found (yet).
            UserError: As :meth:`rows`.
        """
        if not 0 <= index < self.count_known:
            raise IndexError(index)
        self._refuse_changed()
        return self._row(index, limit)

    def close(self) -> None:
        """Give the file back; may be called twice, and from any thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._source.descriptor)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step(self) -> None:
        """Index one chunk more."""
        self._refuse_changed()
        chunk = self._read(self._offset, min(_CHUNK, self.size - self._offset))
        if chunk is None:
            return
        base = self._offset - len(self._rest)
        data = self._rest + chunk
        self._offset += len(chunk)
        final = self._offset >= self.size
        self._rest = data[self._scanner.feed(data, base, final) :]
        self._complete = final

    def _read(self, offset: int, count: int) -> bytes | None:
        """So many bytes exactly; None once the file has been closed."""
        pieces: list[bytes] = []
        while count > 0:
            with self._lock:
                if self._closed:
                    return None
                try:
                    piece = os.pread(self._source.descriptor, count, offset)
                except OSError as error:
                    raise UserError(
                        f"{self._shown} cannot be read: {error.strerror}.", "Check the disk it is on."
                    ) from error
            if not piece:
                raise self._changed("has become shorter")
            pieces.append(piece)
            offset += len(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _row(self, index: int, limit: int | None = None) -> Row:
        position = index + self._skip
        start, end, line = self._spans.starts[position], self._spans.ends[position], self._spans.lines[position]
        size = end - start
        limit = self.row_limit if limit is None else limit
        raw = self._read(start, size if size <= limit else min(size, RAW_LIMIT))
        if raw is None:
            raise UserError(f"{self._shown} has been closed.", "Open it again.")
        if size > limit:
            error = f"The row is {format_bytes(size)} long; rows up to {format_bytes(limit)} are read."
            return Row(index, line, None, error, "too_long", _preview(raw))
        if self.kind == "csv":
            return parse_csv(index, line, raw, self._header, self._source.delimiter)
        return parse_json(index, line, raw)

    def _read_header(self) -> list[str]:
        if not len(self._spans):
            raise UserError(
                f"{self._shown} has a header of more than {format_bytes(self._offset)}.",
                "Check it for a quotation mark that is opened and not closed.",
            )
        start, end = self._spans.starts[0], self._spans.ends[0]
        raw = self._read(start, min(end - start, self.row_limit)) or b""
        try:
            names = [name.strip() for name in _split_csv(raw.decode("utf-8"), self._source.delimiter)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"{self._shown} has no readable header: {one_line(str(error), 200)}.", "Save it as UTF-8 CSV."
            ) from error
        twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
        if twice is not None:
            raise UserError(
                f"{self._shown} has two columns called '{one_line(twice, 60)}'.", "Give each column a name of its own."
            )
        return names

    def _refuse_no_rows(self) -> None:
        if self._complete and self.count_known == 0:
            what = "a header and no rows" if len(self._spans) else "no rows"
            raise UserError(f"{self._shown} holds {what}.", "Give a file with at least one row.")

    def _refuse_changed(self) -> None:
        try:
            now = Identity.of(self.path.stat())
        except OSError:
            raise self._changed("is gone") from None
        opened = self._source.identity
        if now == opened:
            return
        if (now.device, now.inode) != (opened.device, opened.inode):
            raise self._changed("has been replaced")
        raise self._changed("has become shorter" if now.size < opened.size else "has changed")

    def _changed(self, what: str) -> FileChangedError:
        return FileChangedError(f"{self._shown} {what} since it was opened.", "Open it again.")

    @property
    def _shown(self) -> str:
        return one_line(str(self.path))


def open_rows(path: Path, row_limit: int = ROW_LIMIT) -> RowFile:
    """Open a dataset and index its first rows, so that a page can be shown at once.

    Args:
        path: JSON Lines, a JSON array, CSV or TSV.
        row_limit: Longest row parsed, in bytes; longer ones come as rows with an error.

    Raises:
        UserError: If it is missing, a directory or special, unreadable, empty, not text, of a kind that is not read, or
            without rows.
    """
    return RowFile(path, row_limit)


def read_rows(path: Path, row_limit: int = ROW_LIMIT) -> Iterator[Row]:
    """All rows in order, in little memory; unreadable ones come with their error.

    Raises:
        FileChangedError: If the file changes meanwhile.
        UserError: As :func:`open_rows`.
    """
    with open_rows(path, row_limit) as file:
        done = 0
        while True:
            while done < file.count_known:
                page = file.rows(done, _BATCH)
                done += len(page)
                yield from page
            if file.complete:
                return
            file._step()


def parse_json(index: int, line: int, raw: bytes) -> Row:
    """A row of JSON; never raises."""
    try:
        data = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Row(index, line, None, f"The row is not UTF-8 at byte {error.start}.", "not_utf8", _preview(raw))
    except json.JSONDecodeError as error:
        reason = f"The row is not JSON: {error.msg} at character {error.pos + 1}."
        if not raw:
            reason = "The file ends before the array does: its closing ] is missing."
        return Row(index, line, None, reason, "not_json", _preview(raw))
    except (ValueError, RecursionError):
        # A number of thousands of digits, or thousands of brackets.
        return Row(index, line, None, "The row is JSON that goes beyond all bounds.", "not_json", _preview(raw))
    if not isinstance(data, dict):
        return Row(index, line, None, "The row is JSON but no object with keys.", "not_an_object", _preview(raw))
    return Row(index, line, data)


def parse_csv(index: int, line: int, raw: bytes, header: list[str], delimiter: str) -> Row:
    """A record of a CSV as a row; never raises."""
    try:
        cells = _split_csv(raw.decode("utf-8"), delimiter)
    except UnicodeDecodeError as error:
        return Row(index, line, None, f"The row is not UTF-8 at byte {error.start}.", "not_utf8", _preview(raw))
    except csv.Error as error:
        return Row(index, line, None, f"The row is not CSV: {error}.", "bad_csv", _preview(raw))
    if len(cells) != len(header):
        reason = f"The row has {len(cells)} cells, the header has {len(header)}."
        return Row(index, line, None, reason, "bad_csv", _preview(raw))
    return Row(index, line, dict(zip(header, cells, strict=True)))


def _split_csv(text: str, delimiter: str) -> list[str]:
    # The module's own limit of 128 kB a cell is global to the process; rows are bounded before they come here.
    if csv.field_size_limit() < len(text):
        csv.field_size_limit(len(text))
    records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    if len(records) != 1:
        raise csv.Error("a carriage return stands in the middle")
    return records[0]


def _preview(raw: bytes) -> str:
    return raw[: RAW_LIMIT * 4].decode("utf-8", "replace")[:RAW_LIMIT]


def _make_scanner(kind: Kind, spans: Spans, delimiter: str) -> Scanner:
    if kind == "csv":
        return CsvScanner(spans, delimiter)
    return ArrayScanner(spans) if kind == "json" else LineScanner(spans)

"""Lazy text rows: the byte ranges of a file's rows are indexed, and rows are parsed only on access."""

from __future__ import annotations

import csv
import threading

from core.data.files.bytes import ByteSource, PlainBytes
from core.data.files.index_cache import load_index, save_index
from core.data.files.layout import Kind, Layout
from core.data.files.parsers import RAW_LIMIT, parse_csv, parse_json, parse_text, preview, split_csv
from core.data.files.rows import NoRowsError, Progress, Row, RowFile
from core.data.files.scanners import ArrayScanner, CsvScanner, LineScanner, Scanner, Spans
from core.data.files.source import TABLES, Source
from core.data.files.spool import SpooledBytes
from core.errors import UserError
from core.text import one_line
from core.units import format_bytes

_CHUNK = 1 << 20
# Indexed before the first page is shown, whichever limit is reached first.
_FIRST_ROWS = 512
_FIRST_BYTES = 8 << 20
# Bytes of neighboring rows that one read covers.
_BLOCK = 256 << 10
#: Most rows read of one file; the index holds each row's byte range in memory, 20 bytes a row.
MOST_ROWS = 50_000_000


class TextRows(RowFile):
    """The rows of one open file, plain or packed. Takes ownership of the source's descriptor.

    Args:
        source: The file.
        row_limit: Longest row parsed, in bytes; a longer one is reported with its size.

    Raises:
        NoRowsError: If it has no rows.
        UserError: If it cannot be read.
    """

    def __init__(self, source: Source, row_limit: int) -> None:
        self.path = source.path
        self.row_limit = row_limit
        self._bytes: ByteSource = (
            PlainBytes(source, source.layout) if source.layout is not None else SpooledBytes(source)
        )
        self._source = source
        self._indexing = threading.Lock()
        self._closed = threading.Event()
        self._layout = self._bytes.layout
        self._offset = self._layout.start
        self._rest = b""
        self._header: list[str] = []
        kept = load_index(source, self._layout) if source.layout is not None else None
        self._spans = Spans() if kept is None else kept
        self._complete = kept is not None
        self._keeps = kept is None and source.layout is not None
        self._scanner = _make_scanner(self._layout, self._spans)
        try:
            while not self._complete and len(self._spans) < _FIRST_ROWS and self._offset < _FIRST_BYTES:
                self.advance()
            self._refuse_no_rows()
            if self.kind == "csv":
                self._header = self._read_header()
        except BaseException:
            self.close()
            raise

    @property
    def kind(self) -> Kind:
        """See :class:`~core.data.files.rows.RowFile`."""
        return self._layout.kind

    @property
    def columns(self) -> list[str]:
        """See :class:`~core.data.files.rows.RowFile`."""
        return list(self._header)

    @property
    def size(self) -> int:
        """See :class:`~core.data.files.rows.RowFile`."""
        return self._source.size

    @property
    def count_known(self) -> int:
        """See :class:`~core.data.files.rows.RowFile`."""
        return max(len(self._spans) - self._skip, 0)

    @property
    def complete(self) -> bool:
        """See :class:`~core.data.files.rows.RowFile`."""
        return self._complete

    @property
    def _skip(self) -> int:
        return 1 if self.kind == "csv" else 0

    def advance(self) -> tuple[int, int]:
        """See :class:`~core.data.files.rows.RowFile`."""
        if self._complete or self._closed.is_set():
            return self.size, self.size
        self._source.refuse_changed()
        if len(self._spans) > MOST_ROWS:
            raise UserError(
                f"{self._source.shown} has more than {MOST_ROWS:,} rows.",
                "Cut it into several files, and name some of them.",
            )
        while self._offset >= self._bytes.available and not self._bytes.final and not self._closed.is_set():
            self._bytes.advance()
        available = self._bytes.available
        chunk = self._bytes.read(self._offset, min(_CHUNK, available - self._offset))
        if chunk is not None:
            base = self._offset - len(self._rest)
            data = self._rest + chunk
            self._offset += len(chunk)
            final = self._bytes.final and self._offset >= self._bytes.available
            self._rest = data[self._scanner.feed(data, base, final) :]
            self._complete = final
        return (min(self._offset, self.size) if self._source.layout is not None else self._bytes.done), self.size

    def index(self, progress: Progress | None = None) -> None:
        """See :class:`~core.data.files.rows.RowFile`."""
        with self._indexing:
            while not self._complete and not self._closed.is_set():
                done, total = self.advance()
                if progress is not None:
                    progress(done, total)
            if self._closed.is_set():
                return
            self._refuse_no_rows()
            if self._keeps:
                self._keeps = False
                save_index(self._source, self._layout, self._spans)

    def rows(self, start: int, count: int) -> list[Row]:
        """See :class:`~core.data.files.rows.RowFile`."""
        first = max(start, 0)
        last = min(max(start + count, 0), self.count_known)
        if first >= last:
            return []
        self._source.refuse_changed()
        found: list[Row] = []
        while first < last:
            block = self._block(first, last)
            found += block
            first += len(block)
        return found

    def row(self, index: int, limit: int | None = None) -> Row:
        """See :class:`~core.data.files.rows.RowFile`."""
        if not 0 <= index < self.count_known:
            raise IndexError(index)
        self._source.refuse_changed()
        return self._row(index, limit)

    def close(self) -> None:
        """See :class:`~core.data.files.rows.RowFile`."""
        self._closed.set()
        self._bytes.close()

    def _block(self, first: int, last: int) -> list[Row]:
        """At least one row from ``first`` on, and as many before ``last`` as one read covers."""
        starts, ends, skip = self._spans.starts, self._spans.ends, self._skip
        base, stop = starts[first + skip], first
        most = base + min(_BLOCK, self.row_limit)
        while stop < last and ends[stop + skip] <= most:
            stop += 1
        if stop - first < 2:
            return [self._row(first)]
        # One call for all rows: each call releases the GIL, and may wait to get it back.
        block = self._read(base, ends[stop - 1 + skip] - base)
        return [
            self._parsed(index, block[starts[index + skip] - base : ends[index + skip] - base])
            for index in range(first, stop)
        ]

    def _row(self, index: int, limit: int | None = None) -> Row:
        position = index + self._skip
        start, size = self._spans.starts[position], self._spans.ends[position] - self._spans.starts[position]
        limit = self.row_limit if limit is None else limit
        raw = self._read(start, size if size <= limit else min(size, RAW_LIMIT))
        if size > limit:
            error = f"The row is {format_bytes(size)} long; rows up to {format_bytes(limit)} are read."
            return Row(index, self._line(position), None, error, "too_long", preview(raw))
        return self._parsed(index, raw)

    def _read(self, offset: int, count: int) -> bytes:
        raw = self._bytes.read(offset, count)
        if raw is None:
            raise UserError(f"{self._source.shown} has been closed.", "Open it again.")
        return raw

    def _parsed(self, index: int, raw: bytes) -> Row:
        line = self._line(index + self._skip)
        if self.kind == "csv":
            return parse_csv(index, line, raw, self._header, self._layout.delimiter)
        if self._layout.nested and raw.startswith(b"["):
            error = "Another array of rows begins here; only the first of a file is read."
            return Row(index, line, None, error, "not_an_object", preview(raw))
        return parse_text(index, line, raw) if self.kind == "text" else parse_json(index, line, raw)

    def _line(self, position: int) -> int:
        """The line that a row begins on; 0 if the row shares it with another."""
        if self._source.packing in TABLES:
            return 0
        lines = self._spans.lines
        line = lines[position]
        if self.kind == "json" and line in (
            *lines[max(position - 1, 0) : position],
            *lines[position + 1 : position + 2],
        ):
            return 0
        return line

    def _read_header(self) -> list[str]:
        shown = self._source.shown
        if not len(self._spans):
            raise UserError(
                f"{shown} has a header of more than {format_bytes(self._offset)}.",
                "Check it for a quotation mark that is opened and not closed.",
            )
        start, end = self._spans.starts[0], self._spans.ends[0]
        raw = self._bytes.read(start, min(end - start, self.row_limit)) or b""
        try:
            names = [name.strip() for name in split_csv(raw.decode("utf-8"), self._layout.delimiter)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"{shown} has no readable header: {one_line(str(error), 200)}.", "Save it as UTF-8 CSV."
            ) from error
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise UserError(
                    f"{shown} has two columns called '{one_line(name, 60)}'.", "Give each column a name of its own."
                )
            seen.add(name)
        return names

    def _refuse_no_rows(self) -> None:
        if self._complete and self.count_known == 0:
            what = "a header and no rows" if len(self._spans) else "no rows"
            raise NoRowsError(f"{self._source.shown} holds {what}.", "Give a file with at least one row.")


def _make_scanner(layout: Layout, spans: Spans) -> Scanner:
    if layout.kind == "csv":
        return CsvScanner(spans, layout.delimiter)
    return ArrayScanner(spans, nested=layout.nested, line=layout.line) if layout.kind == "json" else LineScanner(spans)

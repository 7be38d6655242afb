"""Lazy text rows: an index of the byte ranges of a file's rows, which are parsed on access."""

from __future__ import annotations

import csv
import io
import json
import threading

from core.data.files.layout import Layout
from core.data.files.rows import NoRowsError, Progress, Row, RowFile
from core.data.files.scanners import ArrayScanner, CsvScanner, LineScanner, Scanner, Spans
from core.data.files.source import Source
from core.data.files.spool import PlainBytes, SpooledBytes
from core.errors import UserError
from core.text import one_line
from core.units import format_bytes

#: Characters of an unreadable row kept for display.
RAW_LIMIT = 4000

_CHUNK = 1 << 20
#: Indexed before the first page is shown, up to either limit.
_FIRST_ROWS = 512
_FIRST_BYTES = 8 << 20
#: Bytes of neighboring rows covered by one read.
_BLOCK = 256 << 10
#: Most rows of a file; the index takes 20 bytes of memory per row.
MOST_ROWS = 50_000_000


_csv_limit = threading.Lock()


def parse_json(index: int, line: int, raw: bytes) -> Row:
    """Parse a row of JSON; never raises."""
    try:
        data = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _not_utf8(index, line, raw, error)
    except json.JSONDecodeError as error:
        reason = f"The row is not JSON: {error.msg} at character {error.pos + 1}."
        if not raw:
            reason = "The file ends before the array does: its closing ] is missing."
        return Row(index, line, None, reason, "not_json", preview(raw))
    except (ValueError, RecursionError):
        # A number with thousands of digits, or thousands of brackets.
        return Row(index, line, None, "The row is JSON that goes beyond all bounds.", "not_json", preview(raw))
    if not isinstance(data, dict):
        return Row(index, line, None, "The row is JSON but no object with keys.", "not_an_object", preview(raw))
    return Row(index, line, data)


def parse_csv(index: int, line: int, raw: bytes, header: list[str], delimiter: str) -> Row:
    """Parse a record of a CSV file; never raises."""
    try:
        cells = split_csv(raw.decode("utf-8"), delimiter)
    except UnicodeDecodeError as error:
        return _not_utf8(index, line, raw, error)
    except csv.Error as error:
        return Row(index, line, None, f"The row is not CSV: {error}.", "bad_csv", preview(raw))
    if len(cells) != len(header):
        reason = f"The row has {len(cells)} cells, the header has {len(header)}."
        return Row(index, line, None, reason, "bad_csv", preview(raw))
    return Row(index, line, dict(zip(header, cells, strict=True)))


def parse_text(index: int, line: int, raw: bytes) -> Row:
    """Parse a line of plain text into a row with the column ``text``; never raises."""
    try:
        return Row(index, line, {"text": raw.decode("utf-8").rstrip("\r")})
    except UnicodeDecodeError as error:
        return _not_utf8(index, line, raw, error)


def split_csv(text: str, delimiter: str) -> list[str]:
    """The cells of one record.

    Raises:
        csv.Error: If the text is not exactly one record.
    """
    # csv limits cells to 128 kB, process-wide; rows are bounded before this.
    with _csv_limit:
        if csv.field_size_limit() < len(text):
            csv.field_size_limit(len(text))
    records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    if len(records) != 1:
        raise csv.Error("a carriage return stands in the middle")
    return records[0]


def preview(raw: bytes) -> str:
    """Beginning of a row as text, with undecodable bytes replaced."""
    return raw[: RAW_LIMIT * 4].decode("utf-8", "replace")[:RAW_LIMIT]


def _not_utf8(index: int, line: int, raw: bytes, error: UnicodeDecodeError) -> Row:
    return Row(index, line, None, f"The row is not UTF-8 at byte {error.start}.", "not_utf8", preview(raw))


class TextRows(RowFile):
    """The rows of an open file, plain or packed. Takes ownership of the source's descriptor.

    Args:
        source: The file.
        row_limit: Longest row parsed, in bytes; longer rows are reported with their size.

    Raises:
        NoRowsError: If it has no rows.
        UserError: If it cannot be read.
    """

    def __init__(self, source: Source, row_limit: int) -> None:
        self.path, self.size = source.path, source.size
        self.row_limit = row_limit
        self._bytes = PlainBytes(source, source.layout) if source.layout is not None else SpooledBytes(source)
        self._source = source
        self._indexing = threading.Lock()
        self._closed = threading.Event()
        self._layout = self._bytes.layout
        self.kind = self._layout.kind
        self._offset = self._layout.start
        self._rest = b""
        self.columns: list[str] = []
        self._spans = Spans()
        self._complete = False
        self._scanner = _make_scanner(self._layout, self._spans)
        try:
            while not self._complete and len(self._spans) < _FIRST_ROWS and self._offset < _FIRST_BYTES:
                self.advance()
            self._refuse_no_rows()
            if self.kind == "csv":
                self.columns = self._read_header()
        except BaseException:
            self.close()
            raise

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
            if not self._closed.is_set():
                self._refuse_no_rows()

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
        """Rows from ``first`` to at most ``last``: as many as one read covers, at least one."""
        starts, ends, skip = self._spans.starts, self._spans.ends, self._skip
        base, stop = starts[first + skip], first
        most = base + min(_BLOCK, self.row_limit)
        while stop < last and ends[stop + skip] <= most:
            stop += 1
        if stop - first < 2:
            return [self._row(first)]
        # A single read: each read releases the GIL, and may wait to get it back.
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
            return parse_csv(index, line, raw, self.columns, self._layout.delimiter)
        if self._layout.nested and raw.startswith(b"["):
            error = "Another array of rows begins here; only the first of a file is read."
            return Row(index, line, None, error, "not_an_object", preview(raw))
        return parse_text(index, line, raw) if self.kind == "text" else parse_json(index, line, raw)

    def _line(self, position: int) -> int:
        """Line on which a row begins; 0 if it shares the line with another row."""
        if self._source.is_table:
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

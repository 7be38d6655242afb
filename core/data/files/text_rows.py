"""Lazy text rows: an index of the byte ranges of rows, which are parsed on access.

The bytes come from a plain file, or from a packed file that a helper process unpacks on demand. One thread advances
them; any thread may read and close them. A scanner finds the rows in them, chunk by chunk, without parsing.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tempfile
import threading
from array import array
from collections.abc import Collection

from core.data.conversation import turn_keys
from core.data.files.encodings import UNDECODABLE
from core.data.files.rows import NoRowsError, Progress, Row, RowFile
from core.data.files.source import HEAD_BYTES, Layout, Source, recognize
from core.errors import UserError
from core.helper import Helper
from core.jobs.job import JobDiedError
from core.paths import home, make_private_dir
from core.text import one_line
from core.units import format_bytes


class Descriptor:
    """An open file that one thread may close while another reads it.

    It is read with ``pread``, not mapped: a mapped file that another process truncates kills its reader.

    Args:
        source: The file, for messages.
        number: The file descriptor; closed by :meth:`close`.
    """

    def __init__(self, source: Source, number: int) -> None:
        self.closed = threading.Event()
        self._source = source
        self._number = number
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes | None:
        """Exactly ``count`` bytes; None once closed.

        Raises:
            FileChangedError: If the file has become shorter.
            UserError: If it cannot be read.
        """
        pieces: list[bytes] = []
        while count > 0:
            try:
                with self._lock:
                    piece = None if self.closed.is_set() else os.pread(self._number, count, offset)
            except OSError as error:
                shown = self._source.shown
                raise UserError(f"{shown} cannot be read: {error.strerror}.", "Check the disk it is on.") from error
            if piece is None:
                return None
            if not piece:
                raise self._source.changed("has become shorter")
            pieces.append(piece)
            offset += len(piece)
            count -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        with self._lock:
            if not self.closed.is_set():
                self.closed.set()
                os.close(self._number)


class PlainBytes:
    """An unpacked file, available at once. Takes ownership of the source's descriptor."""

    def __init__(self, source: Source, layout: Layout) -> None:
        self.layout = layout
        self.available = self.done = source.size
        self.final = True
        descriptor = Descriptor(source, source.descriptor)
        self.read, self.close = descriptor.read, descriptor.close

    def advance(self) -> None:
        """Do nothing: all bytes are available."""


class SpooledBytes:
    """Unpacked text of a packed file. Takes ownership of the source's descriptor.

    The helper works one portion ahead of the reader and then stops: a file opened for its first page is not unpacked
    whole. The text is in the cache directory until it is closed.

    Raises:
        UserError: If the file is damaged in its first portion, or does not unpack to text.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.available = 0
        """Number of bytes that can be read now."""
        self.done = 0
        """Bytes of the packed file consumed for them."""
        self.final = False
        """True once no more bytes will come."""
        self._failure: UserError | None = None
        self._closing = threading.Lock()
        try:
            spool = tempfile.TemporaryFile(dir=make_private_dir(home() / "cache"), buffering=0)  # noqa: SIM115
        except OSError as error:
            os.close(source.descriptor)
            raise UserError(
                f"{source.shown} cannot be unpacked: {error.strerror}.", "Free some space in LOCALTUNE_HOME."
            ) from error
        with spool:
            self._descriptor = Descriptor(source, os.dup(spool.fileno()))
            self._helper = Helper(
                "core.data.files.unpack",
                source.packing,
                str(source.descriptor),
                str(spool.fileno()),
                pass_fds=(source.descriptor, spool.fileno()),
            )
        os.close(source.descriptor)
        self.read = self._descriptor.read
        try:
            self._request()
            while not self.final and self.available < HEAD_BYTES:
                self.advance()
            head = self.read(0, min(HEAD_BYTES, self.available)) or b""
            if not head:
                raise NoRowsError(f"{source.shown} is empty inside.", "Give a file with at least one row.")
            self.layout: Layout = recognize(source.suffix, head, source.shown)
        except BaseException:
            self.close()
            raise

    def advance(self) -> None:
        """Wait until more bytes are available, or the source is final or closed.

        Raises:
            UserError: If the file is damaged.
        """
        if self.final or self._descriptor.closed.is_set():
            return
        if self._failure is not None:
            raise self._failure
        line = self._helper.stdout.readline()
        if not line and self._descriptor.closed.is_set():
            return
        if not line:
            hint = "It is damaged, or too large for the memory that is free."
            self._failure = JobDiedError(f"the reader of {self.source.shown}", self._helper.end(), hint=hint)
            raise self._failure
        answer = json.loads(line)
        if "error" in answer:
            self.available = max(int(answer["bytes"]), self.available)
            self._failure = UserError(
                f"{self.source.shown} {one_line(answer['error'], 400)}.", one_line(answer["hint"], 200)
            )
            raise self._failure
        # The flag before the count, so a reader that sees all bytes also sees the end.
        self.final = bool(answer["end"])
        self.available = int(answer["bytes"])
        self.done = self.source.size if self.final else int(answer["done"])
        if self.final:
            self._end_helper()
        else:
            self._request()

    def close(self) -> None:
        """Release the file and its helper; may be called twice, and from any thread."""
        self._descriptor.close()
        self._end_helper()

    def _request(self) -> None:
        try:
            self._helper.send(b"more\n")
        except (OSError, ValueError):
            # The missing answer will show that the helper is gone.
            return

    def _end_helper(self) -> None:
        with self._closing:
            self._helper.end()
            self._helper.stdin.close()


_SPACE = b" \t\r\n\x0b\x0c"
_NO_SPACE = re.compile(rb"[^ \t\r\n\x0b\x0c]")


class Spans:
    """Byte ranges and first lines of rows, 20 bytes each."""

    def __init__(self) -> None:
        self.starts = array("Q")
        self.ends = array("Q")
        self.lines = array("I")

    def __len__(self) -> int:
        # The last array appended to: a reader in another thread never sees half an entry.
        return len(self.lines)

    def add(self, start: int, end: int, line: int) -> None:
        """Add a row: bytes ``start`` to ``end``, on ``line`` (from 1)."""
        self.starts.append(start)
        self.ends.append(end)
        self.lines.append(line)


class LineScanner:
    """Rows of JSON Lines: lines that are not blank."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._line = 1
        self._open: int | None = None

    def feed(self, data: bytes, base: int, final: bool) -> int:
        """Scan a chunk that begins at file offset ``base``; see :data:`Scanner`."""
        position, size, line, add = 0, len(data), self._line, self._spans.add
        find = data.find
        while position < size:
            if self._open is None and data[position] in _SPACE:
                found = _NO_SPACE.search(data, position)
                begins = size if found is None else found.start()
                line += data.count(b"\n", position, begins)
                position = begins
                continue
            end = find(b"\n", position)
            start = base + position if self._open is None else self._open
            if end < 0:
                self._open = start
                break
            add(start, base + end, line)
            self._open = None
            line += 1
            position = end + 1
        if final and self._open is not None:
            add(self._open, base + size, line)
            self._open = None
        self._line = line
        return size


class CsvScanner:
    """Records of a CSV, including the header: a newline outside quotes ends a record.

    As in :mod:`csv`, a quote opens only at the start of a cell, and a doubled quote inside is a character.

    Args:
        spans: Receives the records.
        delimiter: Delimiter of cells.
    """

    def __init__(self, spans: Spans, delimiter: str) -> None:
        self._spans = spans
        self._delimiter = delimiter.encode()
        self._turn = re.compile(b'\n|(?<=[%b])"' % re.escape(self._delimiter))
        self._line = 1
        self._first_line = 1
        self._start: int | None = None
        self._cell_begins = False
        self._quoted = False

    def feed(self, data: bytes, base: int, final: bool) -> int:
        """Scan a chunk that begins at file offset ``base``; see :data:`Scanner`."""
        position, size = 0, len(data)
        # The next byte decides if a quote is doubled, or a carriage return is part of a line end.
        limit = size if final else size - (data[-1:] in (b'"', b"\r"))
        while position < limit:
            if self._start is None:
                self._start, self._first_line, self._cell_begins = base + position, self._line, True
            if self._cell_begins and data[position : position + 1] == b'"':
                self._quoted, self._cell_begins = True, False
                position += 1
                continue
            position = (
                self._inside(data, position, limit) if self._quoted else self._outside(data, position, limit, base)
            )
        if final and self._start is not None:
            self._end(data, base, size)
        # A doubled quote is consumed whole, even if its second half is beyond the limit.
        return max(position, limit)

    def _inside(self, data: bytes, position: int, limit: int) -> int:
        quote = data.find(b'"', position, limit)
        end = limit if quote < 0 else quote
        self._line += data.count(b"\n", position, end)
        if quote < 0:
            return limit
        if data[quote + 1 : quote + 2] == b'"':
            return quote + 2
        self._quoted = False
        return quote + 1

    def _outside(self, data: bytes, position: int, limit: int, base: int) -> int:
        turn = self._turn.search(data, position, limit)
        self._cell_begins = turn is None and data[limit - 1 : limit] == self._delimiter
        if turn is None:
            return limit
        if turn.group() == b'"':
            self._quoted = True
        else:
            self._line += 1
            self._end(data, base, turn.start())
        return turn.end()

    def _end(self, data: bytes, base: int, end: int) -> None:
        start = self._start if self._start is not None else base + end
        if start < base or data[start - base : end] not in (b"", b"\r"):
            self._spans.add(start, base + end, self._first_line)
        self._start, self._quoted = None, False


class ArrayScanner:
    """Elements of a JSON array: the text between its brackets and commas, with nested values whole.

    Args:
        spans: Receives the elements.
        nested: True if the array is a value of an object. The rest of the object is skipped, except for another array
            of objects, which becomes an unreadable row.
        line: Line on which the array begins.
    """

    _TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(")?|[\[\]{},]', re.DOTALL)
    _STRING_REST = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(")?', re.DOTALL)
    _ANOTHER = re.compile(rb"\[\s*\{")

    def __init__(self, spans: Spans, *, nested: bool = False, line: int = 1) -> None:
        self._spans = spans
        self._nested = nested
        self._depth = 0
        self._line = line
        self._in_string = False
        self._start: int | None = None
        self._first_line = 1
        self._closed = False

    def feed(self, data: bytes, base: int, final: bool) -> int:
        """Scan a chunk that begins at file offset ``base``; see :data:`Scanner`."""
        position, size = 0, len(data)
        while position < size:
            if self._closed and self._nested:
                return self._behind(data, base, position, final)
            match = self._STRING_REST.match(data, position) if self._in_string else self._TOKEN.search(data, position)
            if match is None:
                self._pass_over(data, base, position, size)
                break
            self._pass_over(data, base, position, match.start())
            position = match.end()
            if not self._in_string and match.group()[:1] != b'"':
                self._bracket(match.group(), data, base, match.start())
                continue
            self._pass_over(data, base, match.start(), position)
            self._in_string = match.group(1) is None
            if self._in_string and position < size:
                # A backslash ends the chunk: the escaped character comes with the next one.
                if not final:
                    return position
                break
        if final and self._start is not None:
            self._end(base + size)
        elif final and not self._closed:
            # An empty row reports the missing end.
            self._spans.add(base + size, base + size, self._line)
        return size

    def _behind(self, data: bytes, base: int, position: int, final: bool) -> int:
        """Skip the rest of the object around an array; another array of objects becomes an unreadable row."""
        another = self._ANOTHER.search(data, position) if self._start is None else None
        if another is not None:
            self._start = base + another.start()
            self._first_line = self._line + data.count(b"\n", position, another.start())
        if final and self._start is not None:
            self._end(base + len(data))
        self._line += data.count(b"\n", position)
        return len(data)

    def _bracket(self, mark: bytes, data: bytes, base: int, position: int) -> None:
        if mark == b"," and self._depth == 1:
            self._end(base + position)
            return
        if mark in b"[{":
            if self._depth or self._closed:
                self._pass_over(data, base, position, position + 1)
            self._depth += 1
        elif mark in b"]}":
            self._depth -= 1
            if self._depth == 0 and not self._closed:
                self._end(base + position)
                self._closed = True
            else:
                self._depth = max(self._depth, 0)
                self._pass_over(data, base, position, position + 1)
        else:
            self._pass_over(data, base, position, position + 1)

    def _pass_over(self, data: bytes, base: int, position: int, end: int) -> None:
        """Count lines, and start an element at the first byte that is not whitespace."""
        if position >= end:
            return
        if self._start is None:
            piece = data[position:end]
            skipped = len(piece) - len(piece.lstrip(_SPACE))
            self._line += data.count(b"\n", position, position + skipped)
            position += skipped
            if position == end:
                return
            self._start, self._first_line = base + position, self._line
        self._line += data.count(b"\n", position, end)

    def _end(self, end: int) -> None:
        if self._start is not None:
            self._spans.add(self._start, end, self._first_line)
        self._start = None


#: Takes consecutive chunks, the last one as ``final``, appends the rows it finds to a :class:`Spans`, and returns the
#: number of bytes consumed. The rest, a few bytes at most, must be fed again at the head of the next chunk.
Scanner = LineScanner | CsvScanner | ArrayScanner


#: Longest row parsed, in bytes; longer rows are reported with their size.
ROW_LIMIT = 8 << 20
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
    if isinstance(data, list) and data and all(map(turn_keys, data)):
        data = {"messages": data}
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
    reason = f"The row is not UTF-8 at byte {error.start}."
    if raw.startswith(UNDECODABLE.encode("utf-8", "surrogatepass"), error.start):
        reason = "The row has bytes that are not a character in the encoding of the file."
    return Row(index, line, None, reason, "not_utf8", preview(raw))


class TextRows(RowFile):
    """The rows of an open file, plain or packed. Takes ownership of the source's descriptor.

    Args:
        source: The file.
        numbered: As for :func:`~core.data.files.reader.open_rows`.

    Raises:
        NoRowsError: If it has no rows.
        UserError: If it cannot be read.
    """

    def __init__(self, source: Source, *, numbered: Collection[str] = ()) -> None:
        self.path, self.size, self.note = source.path, source.size, source.note
        self._bytes = PlainBytes(source, source.layout) if source.layout is not None else SpooledBytes(source)
        self._source = source
        self._indexing = threading.Lock()
        self._closed = threading.Event()
        self._layout = self._bytes.layout
        self.kind = self._layout.kind
        self._skip = 1 if self.kind == "csv" else 0
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
                self.columns = self._read_header(numbered)
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
        most = base + min(_BLOCK, ROW_LIMIT)
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
        limit = ROW_LIMIT if limit is None else limit
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

    def _read_header(self, numbered: Collection[str]) -> list[str]:
        shown = self._source.shown
        if not len(self._spans):
            raise UserError(
                f"{shown} has a header of more than {format_bytes(self._offset)}.",
                "Check it for a quotation mark that is opened and not closed.",
            )
        start, end = self._spans.starts[0], self._spans.ends[0]
        raw = self._bytes.read(start, min(end - start, ROW_LIMIT)) or b""
        try:
            cells = split_csv(raw.decode("utf-8"), self._layout.delimiter)
            names = [name.strip() or f"column {place}" for place, name in enumerate(cells, 1)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"{shown} has no readable header: {one_line(str(error), 200)}.", "Save it as UTF-8 CSV."
            ) from error
        if not set(names).issuperset(numbered):
            self._skip = 0
            self.note = f"{self.note} Its columns are numbered, and its first line is a record.".lstrip()
            return [str(number) for number, _ in enumerate(names, 1)]
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

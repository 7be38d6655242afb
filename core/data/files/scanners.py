"""Row scanners: find the byte ranges of rows, chunk by chunk, without parsing.

Feed a scanner consecutive chunks, the last one as ``final``. It appends the rows it finds to a :class:`Spans` and
returns the number of bytes consumed. The rest, a few bytes at most, must be fed again at the head of the next chunk.
"""

from __future__ import annotations

import re
from array import array

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
        """Scan a chunk that begins at file offset ``base``; see the module."""
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
        """Scan a chunk that begins at file offset ``base``; see the module."""
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
        """Scan a chunk that begins at file offset ``base``; see the module."""
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


Scanner = LineScanner | CsvScanner | ArrayScanner

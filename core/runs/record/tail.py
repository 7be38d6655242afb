"""Reading of ``events.jsonl``: line by line with a bound, followed while it is written, or from its end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeVar

from core.runs.record.events import LINE_LIMIT, Event, MalformedEventError, decode_event
from core.small_files import open_regular

E = TypeVar("E", bound=Event)

_BLOCK = 1 << 18


class Line(NamedTuple):
    """A line of a file."""

    data: bytes
    """Its bytes without the line break, up to the limit."""
    end: int
    """Offset in the file behind it and its line break, in bytes."""
    is_ended: bool
    """True if it has a line break; the last line of a file may have none."""
    is_cut: bool
    """True if it is longer than the limit."""


def read_lines(file: FileIO, limit: int, begin: int = 0) -> Iterator[Line]:
    """The lines of a file from an offset to its present end.

    Args:
        file: The file, at any position.
        limit: Most bytes of a line; the rest of a longer one is skipped, holes in it without being read.
        begin: Offset of the beginning of a line, in bytes.

    Raises:
        OSError: If it cannot be read.
    """
    held, end, is_cut = b"", begin, False
    file.seek(begin)
    while block := file.read(_BLOCK):
        *pieces, rest = block.split(b"\n")
        for piece in pieces:
            data = held + piece
            end += len(piece) + 1
            yield Line(data[:limit], end, True, is_cut or len(data) > limit)
            held, is_cut = b"", False
        end += len(rest)
        if not is_cut:
            held += rest
            is_cut = len(held) > limit
            held = held[:limit]
        if is_cut:
            end = skip_hole(file, end)
    if held or is_cut:
        yield Line(held, end, False, is_cut)


def skip_hole(file: FileIO, place: int) -> int:
    """Go on to the next bytes that are on the disk, or to the end of the file.

    Args:
        file: The file.
        place: Offset in it, in bytes.

    Returns:
        The new offset.

    Raises:
        OSError: If the file cannot be read.
    """
    try:
        return os.lseek(file.fileno(), place, os.SEEK_DATA)
    except OSError as error:
        # No more data, or a file system without holes.
        return os.lseek(file.fileno(), *((0, os.SEEK_END) if error.errno == errno.ENXIO else (place, os.SEEK_SET)))


#: Bytes per read, so that a long history does not block the reader's event loop.
CHUNK_BYTES = 1 << 20
_END_BYTES = 64 << 10


class EventTail:
    """Incremental reader: whole lines only, unknown types ignored, invalid lines counted.

    Args:
        path: The file; it need not exist yet.
        offset: Bytes already read, up to the end of a line.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.skipped = 0
        """Lines that could not be read as events."""
        self._offset = offset
        self._inode: int | None = None
        self._rest = b""
        self._overlong = False
        self.is_behind = False
        """True if the last read did not reach the end of the file."""

    def poll(self, limit: int = CHUNK_BYTES) -> list[Event]:
        """Events written since the last call, from at most ``limit`` bytes; empty if there are none.

        A file that has been replaced or has become shorter is read again from its start.
        """
        try:
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                if self._inode is None:
                    self._inode = status.st_ino
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset, self._rest, self._overlong = status.st_ino, 0, b"", False
                if self._overlong:
                    # The rest of a line that is skipped; a hole in it need not be read.
                    self._offset = skip_hole(file, self._offset)
                file.seek(self._offset)
                data = file.read(limit) or b""
        except OSError:
            self.is_behind = False
            return []
        self._offset += len(data)
        self.is_behind = self._offset < status.st_size
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if self._overlong and lines:
            # The rest of a line whose beginning was discarded.
            lines.pop(0)
            self._overlong = False
        if len(self._rest) > LINE_LIMIT or self._overlong:
            self.skipped += not self._overlong
            self._rest, self._overlong = b"", True
        return self._decode(lines)

    @property
    def offset(self) -> int:
        """Bytes read, up to the end of the last whole line; another reader can start there."""
        return self._offset - len(self._rest)

    def read_all(self) -> list[Event]:
        """All events up to the present end of the file."""
        return [event for batch in self.batches() for event in batch]

    def batches(self) -> Iterator[list[Event]]:
        """All events up to the present end of the file, in batches: a long history takes a while to read."""
        while True:
            before = self._offset
            yield self.poll()
            if self._offset == before:
                return

    def _decode(self, lines: list[bytes]) -> list[Event]:
        found: list[Event] = []
        for line in lines:
            if not line.strip():
                continue
            try:
                event = _decode_whole(line)
            except MalformedEventError:
                self.skipped += 1
            else:
                found += [event] if event is not None else []
        return found


def _decode_whole(line: bytes) -> Event | None:
    if len(line) > LINE_LIMIT:
        raise MalformedEventError("too long")
    return decode_event(line)


def last_events(path: Path, kind: type[E], limit: int = _END_BYTES) -> Iterator[E]:
    """Events at the end of a file, the newest first; none if it cannot be read.

    Args:
        path: The file.
        kind: Only events of this very class, :class:`Event` for all; others are skipped without being parsed.
        limit: Most bytes searched.
    """
    sign = f'"{kind.type}"'.encode() if kind.type else b""
    for line in _last_lines(path, limit):
        if sign not in line:
            continue
        try:
            event = _decode_whole(line)
        except MalformedEventError:
            continue
        if isinstance(event, kind) and (not kind.type or event.type == kind.type):
            yield event


def _last_lines(path: Path, limit: int) -> Iterator[bytes]:
    """Lines at the end of a file, the last one first; an unterminated line is skipped."""
    try:
        with open_regular(path) as file:
            place = file.seek(0, os.SEEK_END)
            stop, rest, is_end = max(place - limit, 0), b"", True
            while place > stop:
                begin = max(place - _END_BYTES, stop)
                file.seek(begin)
                lines = ((file.read(place - begin) or b"") + rest).split(b"\n")
                place = begin
                # The first piece is the rest of a line that begins earlier, unless the file begins with it. A line that
                # is too long is kept only up to the limit.
                rest = lines.pop(0)[: LINE_LIMIT + 1] if place else b""
                if is_end and lines:
                    lines.pop()
                    is_end = False
                yield from reversed(lines)
    except OSError:
        return

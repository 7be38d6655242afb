"""Lines of a run's files, of which no more is held than a limit: a directory from elsewhere may have any."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import FileIO
from typing import NamedTuple

_BLOCK = 1 << 18


class Line(NamedTuple):
    """A line of a file."""

    data: bytes
    """Its bytes without the line break, up to the limit."""
    end: int
    """Offset in the file behind it and its line break, in bytes."""
    is_ended: bool
    """Whether it has a line break; the last one of a file may have none."""
    is_cut: bool
    """Whether it is longer than the limit."""


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
        # No more of them, or a file system that knows no holes.
        return os.lseek(file.fileno(), *((0, os.SEEK_END) if error.errno == errno.ENXIO else (place, os.SEEK_SET)))

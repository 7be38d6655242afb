"""Byte sources of rows: a plain file, or (in :mod:`core.data.files.spool`) the output of the unpacking helper."""

from __future__ import annotations

import os
import threading
from typing import Protocol

from core.data.files.layout import Layout
from core.data.files.source import Source
from core.errors import UserError


class ByteSource(Protocol):
    """Text that may still grow. One thread advances it; any thread may read and close it."""

    source: Source
    layout: Layout

    @property
    def available(self) -> int:
        """Number of bytes that can be read now."""
        ...

    @property
    def final(self) -> bool:
        """True once ``available`` has reached its final value."""
        ...

    @property
    def done(self) -> int:
        """Bytes of the file consumed for the bytes in ``available``."""
        ...

    def advance(self) -> None:
        """Wait until more bytes are available, or the source is final or closed.

        Raises:
            UserError: If the file is damaged.
        """
        ...

    def read(self, offset: int, count: int) -> bytes | None:
        """Exactly ``count`` available bytes; None once closed.

        Raises:
            FileChangedError: If the file has become shorter.
            UserError: If it cannot be read.
        """
        ...

    def close(self) -> None:
        """Release the file and its helper; may be called twice, and from any thread."""
        ...


class Descriptor:
    """An open file that one thread may close while another reads it.

    It is read with ``pread``, not mapped: a mapped file that another process truncates kills its reader.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = threading.Lock()
        self._closed = False

    def is_closed(self) -> bool:
        """True after :meth:`close`."""
        return self._closed

    def read(self, offset: int, count: int) -> bytes | None:
        """At most ``count`` bytes; empty at the end, None once closed."""
        with self._lock:
            return None if self._closed else os.pread(self.number, count, offset)

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.number)


def read_exactly(descriptor: Descriptor, source: Source, offset: int, count: int) -> bytes | None:
    """Exactly ``count`` bytes; None once closed. Raises as :meth:`ByteSource.read`."""
    pieces: list[bytes] = []
    while count > 0:
        try:
            piece = descriptor.read(offset, count)
        except OSError as error:
            raise UserError(f"{source.shown} cannot be read: {error.strerror}.", "Check the disk it is on.") from error
        if piece is None:
            return None
        if not piece:
            raise source.changed("has become shorter")
        pieces.append(piece)
        offset += len(piece)
        count -= len(piece)
    return b"".join(pieces)


class PlainBytes:
    """An unpacked file, available at once. Takes ownership of the source's descriptor."""

    def __init__(self, source: Source, layout: Layout) -> None:
        self.source = source
        self.layout = layout
        self._descriptor = Descriptor(source.descriptor)

    @property
    def available(self) -> int:
        """See :class:`ByteSource`."""
        return self.source.size

    @property
    def final(self) -> bool:
        """See :class:`ByteSource`."""
        return True

    @property
    def done(self) -> int:
        """See :class:`ByteSource`."""
        return self.source.size

    def advance(self) -> None:
        """Do nothing: all bytes are available."""

    def read(self, offset: int, count: int) -> bytes | None:
        """See :class:`ByteSource`."""
        return read_exactly(self._descriptor, self.source, offset, count)

    def close(self) -> None:
        """See :class:`ByteSource`."""
        self._descriptor.close()

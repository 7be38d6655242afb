"""Byte sources of rows: plain files, and packed files that a helper process unpacks on demand.

One thread advances a source; any thread may read and close it.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading

from core.data.files.layout import HEAD_BYTES, Layout, recognize
from core.data.files.rows import NoRowsError
from core.data.files.source import Source
from core.errors import UserError
from core.helper import Helper
from core.jobs.job import JobDiedError
from core.paths import home, make_private_dir
from core.text import one_line


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

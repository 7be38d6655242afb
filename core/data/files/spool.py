"""Decompression on demand: a helper process unpacks a file into an unnamed temporary file."""

from __future__ import annotations

import json
import os
import tempfile
import threading

from core.data.files.bytes import Descriptor, read_exactly
from core.data.files.layout import HEAD_BYTES, Layout, recognize
from core.data.files.rows import NoRowsError
from core.data.files.source import Source
from core.errors import UserError
from core.helper import Helper
from core.jobs.job import JobDiedError
from core.paths import home, make_private_dir
from core.text import one_line


class SpooledBytes:
    """Unpacked text of a packed file. Takes ownership of the source's descriptor.

    The helper works one portion ahead of the reader and then stops: a file opened for its first page is not unpacked
    whole. The text is in the cache directory until it is closed.

    Raises:
        UserError: If the file is damaged in its first portion, or does not unpack to text.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._available = 0
        self._done = 0
        self._final = False
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
            self._descriptor = Descriptor(os.dup(spool.fileno()))
            self._helper = Helper(
                "core.data.files.unpack",
                source.packing,
                str(source.descriptor),
                str(spool.fileno()),
                pass_fds=(source.descriptor, spool.fileno()),
            )
        os.close(source.descriptor)
        try:
            self._request()
            while not self._final and self._available < HEAD_BYTES:
                self.advance()
            head = self.read(0, min(HEAD_BYTES, self._available)) or b""
            if not head:
                raise NoRowsError(f"{source.shown} is empty inside.", "Give a file with at least one row.")
            self.layout: Layout = recognize(source.suffix, head, source.shown)
        except BaseException:
            self.close()
            raise

    @property
    def available(self) -> int:
        """See :class:`~core.data.files.bytes.ByteSource`."""
        return self._available

    @property
    def final(self) -> bool:
        """See :class:`~core.data.files.bytes.ByteSource`."""
        return self._final

    @property
    def done(self) -> int:
        """See :class:`~core.data.files.bytes.ByteSource`."""
        return self.source.size if self._final else self._done

    def advance(self) -> None:
        """See :class:`~core.data.files.bytes.ByteSource`."""
        if self._final or self._descriptor.is_closed():
            return
        if self._failure is not None:
            raise self._failure
        line = self._helper.stdout.readline()
        if not line and self._descriptor.is_closed():
            return
        if not line:
            hint = "It is damaged, or too large for the memory that is free."
            self._failure = JobDiedError(f"the reader of {self.source.shown}", self._helper.end(), hint=hint)
            raise self._failure
        answer = json.loads(line)
        if "error" in answer:
            self._available = max(int(answer["bytes"]), self._available)
            self._failure = UserError(
                f"{self.source.shown} {one_line(answer['error'], 400)}.", one_line(answer["hint"], 200)
            )
            raise self._failure
        self._done = int(answer["done"])
        # The flag before the count, so a reader that sees all bytes also sees the end.
        self._final = bool(answer["end"])
        self._available = int(answer["bytes"])
        if self._final:
            self._end_helper()
        else:
            self._request()

    def read(self, offset: int, count: int) -> bytes | None:
        """See :class:`~core.data.files.bytes.ByteSource`."""
        return read_exactly(self._descriptor, self.source, offset, count)

    def close(self) -> None:
        """See :class:`~core.data.files.bytes.ByteSource`."""
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

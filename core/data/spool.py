"""A packed file as text: a helper process unpacks it, on request, into a file that has no name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from core.data.bytes import Descriptor, read_exactly
from core.data.layout import HEAD_BYTES, Layout, recognize
from core.data.rows import NoRowsError
from core.data.source import Source
from core.errors import UserError
from core.paths import home, make_private_dir
from core.text import one_line

# The helper imports this package from wherever it was found, whatever the directory it is started in.
_ROOT = str(Path(__file__).resolve().parents[2])


class SpooledBytes:
    """What a packed file unpacks to. Takes over the source's descriptor.

    The helper is one portion ahead of the reader, so both work at once, and stops there: a file that is opened for its
    first page is not unpacked whole. The text lies in the cache directory until it is closed.

    Raises:
        UserError: If the file is damaged in its first portion, or is no text inside.
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
            self._helper = _start_helper(source, spool.fileno())
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
        """See :class:`~core.data.bytes.ByteSource`."""
        return self._available

    @property
    def final(self) -> bool:
        """See :class:`~core.data.bytes.ByteSource`."""
        return self._final

    @property
    def done(self) -> int:
        """See :class:`~core.data.bytes.ByteSource`."""
        return self.source.size if self._final else self._done

    def advance(self) -> None:
        """See :class:`~core.data.bytes.ByteSource`."""
        if self._final or self._descriptor.is_closed():
            return
        if self._failure is not None:
            raise self._failure
        stdout = self._helper.stdout
        line = stdout.readline() if stdout is not None else b""
        if not line and self._descriptor.is_closed():
            return
        answer = json.loads(line) if line else self._death()
        if "error" in answer:
            self._available = max(int(answer["bytes"]), self._available)
            self._failure = UserError(
                f"{self.source.shown} {one_line(answer['error'], 400)}.", one_line(answer["hint"], 200)
            )
            raise self._failure
        self._done = int(answer["done"])
        # The flag before the count: a reader that sees all bytes also sees that they are all.
        self._final = bool(answer["end"])
        self._available = int(answer["bytes"])
        if self._final:
            self._end_helper()
        else:
            self._request()

    def read(self, offset: int, count: int) -> bytes | None:
        """See :class:`~core.data.bytes.ByteSource`."""
        return read_exactly(self._descriptor, self.source, offset, count)

    def close(self) -> None:
        """See :class:`~core.data.bytes.ByteSource`."""
        self._descriptor.close()
        self._end_helper()

    def _request(self) -> None:
        try:
            if self._helper.stdin is not None:
                self._helper.stdin.write(b"more\n")
        except (OSError, ValueError):
            # It has died or been closed: the missing answer tells.
            return

    def _end_helper(self) -> None:
        with self._closing:
            if self._helper.poll() is None:
                self._helper.kill()
            self._helper.wait()
            if self._helper.stdin is not None:
                self._helper.stdin.close()

    def _death(self) -> dict[str, Any]:
        code = self._helper.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        hint = "It is damaged, or too large for the memory that is free."
        return {"bytes": 0, "error": f"cannot be unpacked: its reader {how}", "hint": hint}


def _start_helper(source: Source, spool: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "core.data.unpack", source.packing, str(source.descriptor), str(spool)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        pass_fds=(source.descriptor, spool),
        # Ctrl-C in the terminal is for the app, which closes its helpers itself.
        start_new_session=True,
        # A directory called "core" where the user happens to stand must not be taken for ours.
        env={
            **os.environ,
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH")))),
        },
    )

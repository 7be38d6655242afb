"""The end of the app: the terminal restored, and a process that waits for no thread."""

from __future__ import annotations

import os
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

#: Seconds that threads get to end by themselves.
_GRACE = 0.4

#: Sequences sent to the terminal at the end, in case the app could not: no mouse, no bracketed paste, no reports of
#: focus, size and pixels, wrapped lines, keys as usual, the main screen, a cursor.
_PLAIN = "\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?1016l\x1b[?2004l\x1b[?2048l\x1b[?1004l\x1b[?2026l\x1b[?7h"
_MAIN_SCREEN = "\x1b[<u\x1b[?1049l\x1b[?25h\x1b[0m"


@contextmanager
def whole_terminal() -> Iterator[None]:
    """Restore the terminal's attributes at the end; after an exception its modes too, which Textual does otherwise."""
    attributes = None
    with suppress(OSError, ValueError, termios.error):
        attributes = termios.tcgetattr(sys.stdin.fileno())
    try:
        yield
    except BaseException:
        with suppress(OSError, ValueError):
            # Textual draws on standard error.
            stream = sys.__stderr__
            if stream is not None and stream.isatty():
                stream.write(_PLAIN + _MAIN_SCREEN)
                stream.flush()
        raise
    finally:
        if attributes is not None:
            with suppress(OSError, ValueError, termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, attributes)


def end_process(code: int) -> NoReturn:
    """End the process; threads get a moment to finish, and are not waited for.

    Python itself waits for threads, and one may be in the middle of a file of a hundred gigabytes; and it tears the
    program down piece by piece, which is of no use. Files are written whole or not at all.

    Args:
        code: The exit code.
    """
    until = time.monotonic() + _GRACE
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

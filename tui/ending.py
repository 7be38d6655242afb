"""The end of the app: internal errors in a report, the terminal restored, and a process that waits for no thread."""

from __future__ import annotations

import os
import platform
import sys
import termios
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from textual.worker import WorkerFailed

from core import __version__
from core.crashes import describe, write_report
from core.redact import redact
from core.text import one_line, sanitize


class Mistakes:
    """Internal errors that end the app; the first one counts, others mostly follow from it."""

    def __init__(self) -> None:
        self.first: BaseException | None = None
        self.report: Path | None = None
        """The report file; None without an error, or where the file could not be written."""

    def record(self, error: BaseException, size: tuple[int, int] = (0, 0)) -> None:
        """Report an error, unless there was one before.

        Args:
            error: The unhandled exception.
            size: Columns and rows of the terminal.
        """
        if self.first is not None:
            return
        # A Textual worker's failure only says that there was an exception.
        self.first = error = error.error if isinstance(error, WorkerFailed) else error
        # Whatever fails in here, the app has to end with a message.
        with suppress(Exception):
            facts = {
                "localtune-tui": __version__,
                "Python": platform.python_version(),
                "Textual": version("textual"),
                "terminal": f"{os.environ.get('TERM', '')}, {size[0]}×{size[1]}",
            }
            self.report = write_report(error, facts)

    def sentence(self, kept: str = "", run: str = "") -> str:
        """The error message for standard error: the failure, the file with the details, and the work that is kept.

        Args:
            kept: The kept part of the user's work: ``edits that were not saved``.
            run: The id of the live run.
        """
        if self.first is None:
            return ""
        where = f"the details are in {self.report}" if self.report is not None else "its details could not be written"
        parts = [f"a mistake of the program itself ended the app ({describe(self.first)})", where]
        if kept:
            parts.append(f"{kept} for the next start")
        if run:
            parts.append(f"run {run} goes on without it")
        return one_line("; ".join(parts) + ".")

    def print_traceback(self) -> None:
        """Print the details on standard error too, for debugging (``LOCALTUNE_DEBUG``)."""
        if self.first is not None and os.environ.get("LOCALTUNE_DEBUG"):
            sys.stderr.write(sanitize(redact("".join(traceback.format_exception(self.first)))))


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

"""The app's exit: reports of internal errors, the terminal's reset, and an exit that does not wait for threads."""

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
    """Internal errors that end the app. The first one is reported; others are usually its consequences."""

    def __init__(self) -> None:
        self.first: BaseException | None = None
        self.report: Path | None = None
        """The report file; None without an error, or if it could not be written."""

    def record(self, error: BaseException, size: tuple[int, int] = (0, 0)) -> None:
        """Record an error and write its report; later errors are ignored.

        Args:
            error: The unhandled exception.
            size: Columns and rows of the terminal.
        """
        if self.first is not None:
            return
        # WorkerFailed only wraps the exception.
        self.first = error = error.error if isinstance(error, WorkerFailed) else error
        # The app must exit with a message even if the report fails.
        with suppress(Exception):
            facts = {
                "localtune-tui": __version__,
                "Python": platform.python_version(),
                "Textual": version("textual"),
                "terminal": f"{os.environ.get('TERM', '')}, {size[0]}×{size[1]}",
            }
            self.report = write_report(error, facts)

    def sentence(self, kept: str = "", run: str = "") -> str:
        """The error message for standard error: the error, the report file, and the work that is kept.

        Args:
            kept: The drafts, in words: ``edits that were not saved``.
            run: The id of the live run.
        """
        if self.first is None:
            return ""
        where = f"the details are in {self.report}" if self.report is not None else "its details could not be written"
        parts = [f"an internal error ended the app ({describe(self.first)})", where]
        if kept:
            parts.append(f"{kept} for the next start")
        if run:
            parts.append(f"run {run} goes on without it")
        return one_line("; ".join(parts) + ".")

    def print_traceback(self) -> None:
        """Print the traceback to standard error if ``LOCALTUNE_DEBUG`` is set."""
        if self.first is not None and os.environ.get("LOCALTUNE_DEBUG"):
            sys.stderr.write(sanitize(redact("".join(traceback.format_exception(self.first)))))


#: Seconds that threads get to finish.
_GRACE = 0.4

#: Reset sequences, for an app that could not send its own: mouse, bracketed paste, reports of focus, size and pixels
#: off; line wrap, default keys, main screen and cursor on.
_PLAIN = "\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?1016l\x1b[?2004l\x1b[?2048l\x1b[?1004l\x1b[?2026l\x1b[?7h"
_MAIN_SCREEN = "\x1b[<u\x1b[?1049l\x1b[?25h\x1b[0m"


@contextmanager
def whole_terminal() -> Iterator[None]:
    """Restore the terminal's attributes on exit; after an exception its modes too, which Textual resets otherwise."""
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
    """Exit the process without waiting for threads, after a short grace period.

    Python's own exit would join them, and a thread may be reading a file of a hundred gigabytes. Files are written
    atomically, so nothing is lost.

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

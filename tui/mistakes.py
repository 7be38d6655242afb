"""Internal errors: a report in a file, and one sentence instead of a screenful of traceback."""

from __future__ import annotations

import os
import platform
import sys
import traceback
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

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
        """The error message for standard error: the failure, the file with the details, and what is not lost.

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

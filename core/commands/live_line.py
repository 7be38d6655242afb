"""Live progress lines on standard error: redrawn in place on a terminal, printed now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from core.commands.common import CLEAR_LINE, note
from core.text import one_line

if TYPE_CHECKING:
    from core.jobs.job import JobProgress

#: Seconds between two plain lines where standard error is no terminal.
PLAIN_SECONDS = 5.0
#: Seconds after which a command without progress shows its activity.
BUSY_SECONDS = 2.0
_DEFAULT_COLUMNS = 80


class LiveLine:
    """A line on standard error that is redrawn in place; nothing without a terminal, or on one without a cursor.

    Args:
        plain: Whether to draw nothing on any terminal.
    """

    def __init__(self, *, plain: bool = False) -> None:
        self.is_live = not plain and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        # Another thread may print a message while the line is drawn.
        self._lock = threading.Lock()
        self._line = ""

    def draw(self, text: str) -> None:
        """Draw the line, cut to the terminal's width."""
        if not self.is_live or text == self._line:
            return
        try:
            # A terminal without a size reports 0.
            width = os.get_terminal_size(sys.stderr.fileno()).columns or _DEFAULT_COLUMNS
        except OSError:
            width = _DEFAULT_COLUMNS
        with self._lock:
            # The last column is left free: filling it makes some terminals wrap.
            self._write(CLEAR_LINE + text[: max(width - 1, 1)])
            self._line = text

    def loading(self, detail: str, done: int | None, total: int | None) -> None:
        """Draw the progress of loading a model (:data:`core.chat.engine.Progress`); a whole sentence is a warning, and
        stays above the line."""
        if detail.endswith("."):
            self.message(f"warning: {detail}")
        else:
            self.draw(one_line(detail, 60) + (f" {done / total:.0%}" if done is not None and total else ""))

    def message(self, text: str) -> None:
        """Print a line above it."""
        with self._lock:
            self._write((CLEAR_LINE if self._line else "") + one_line(text) + "\n")
            self._line = ""

    def clear(self) -> None:
        """Clear the line."""
        with self._lock:
            if self._line:
                self._write(CLEAR_LINE)
            self._line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Clear the line."""
        self.clear()

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()


class ProgressLine(LiveLine):
    """Progress on a live line; without a terminal, a plain line now and then.

    Args:
        broken_off: Printed when Ctrl-C ends the ``with`` block.
    """

    def __init__(self, broken_off: str = "") -> None:
        super().__init__()
        self.broken_off = broken_off
        self._shown = ""
        self._printed = time.monotonic()

    def show(self, text: str) -> None:
        """Show the progress."""
        if self.is_live:
            self.draw(text)
        elif text != self._shown and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self.message(text)
            self._shown, self._printed = text, time.monotonic()

    def follow(self, progress: JobProgress) -> None:
        """Show the progress of a job."""
        self.show(progress_words(progress))

    def message(self, text: str) -> None:
        """Print a line above it."""
        super().message(text)
        self._shown = ""

    def __exit__(self, *exception: object) -> None:
        """Clear the line; after Ctrl-C print that the work was broken off."""
        self.clear()
        if self.broken_off and isinstance(exception[1], KeyboardInterrupt):
            note(self.broken_off)


def progress_words(progress: JobProgress) -> str:
    """The progress of a job in a line: `` 25%  merging the weights``."""
    if progress.share is not None:
        return f"{progress.share:4.0%}  {progress.activity}"
    return f"{progress.activity} …" if progress.done is None else f"{progress.activity} ({progress.done})"


@contextlib.contextmanager
def busy(activity: str) -> Iterator[None]:
    """Show an activity on a terminal once it has taken :data:`BUSY_SECONDS`.

    Args:
        activity: In a few words: ``reading the first rows``.
    """
    line = LiveLine()
    if not line.is_live:
        yield
        return
    timer = threading.Timer(BUSY_SECONDS, line.draw, [f"{activity} …"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        line.clear()

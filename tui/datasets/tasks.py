"""What the data pane leaves to threads: opening, recognizing, indexing, searching; they only post messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from textual.message import Message

from core.errors import UserError
from core.text import one_line
from tui.datasets.plan import Reading
from tui.datasets.view import Cancelled, DatasetView, Match, Recognized

#: Seconds between two messages of a scan: often enough to look alive, seldom enough to cost nothing.
REPORT_SECONDS = 0.25

Post: TypeAlias = Callable[[Message], object]


@dataclass
class Opened(Message):
    """A file has been opened."""

    view: DatasetView


@dataclass
class OpenFailed(Message):
    """A file cannot be opened."""

    path: Path
    error: UserError


@dataclass
class ReadAgain(Message):
    """The rows of an open file are to be read in another way."""

    view: DatasetView
    recognized: Recognized


@dataclass
class Scanned(Message):
    """More of a file is indexed: this ``fraction`` of its bytes."""

    view: DatasetView
    fraction: float = 1.0

    def can_replace(self, message: Message) -> bool:
        """Only the newest one matters."""
        return isinstance(message, Scanned) and message.view is self.view


@dataclass
class ScanFailed(Message):
    """An open file cannot be read any more."""

    view: DatasetView
    error: UserError


@dataclass
class SearchProgress(Message):
    """A search has looked at so many rows."""

    view: DatasetView
    seen: int

    def can_replace(self, message: Message) -> bool:
        """Only the newest one matters."""
        return isinstance(message, SearchProgress)


@dataclass
class SearchEnded(Message):
    """A search has found a row, found none or been stopped; ``search`` and ``step`` are those of its beginning."""

    search: int
    step: int
    view: DatasetView
    match: Match | None
    cancelled: bool


@dataclass(frozen=True)
class Search:
    """What to look for, from where, in which direction (1 or -1), and among which rows (None: all)."""

    number: int
    term: str
    start: int
    step: int
    among: Sequence[int] | None = None


class _Pace:
    """Lets a report through only so often."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < REPORT_SECONDS:
            return False
        self._last = now
        return True


def open_dataset(path: Path, reading: Reading, post: Post) -> None:
    """Open a file: :class:`Opened` or :class:`OpenFailed`."""
    try:
        view = DatasetView(path, reading)
    except UserError as error:
        post(OpenFailed(path, error))
        return
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = one_line(str(error) or type(error).__name__, 200).rstrip(".")
        post(OpenFailed(path, UserError(f"{one_line(str(path))} cannot be read: {reason}.", "Check the file.")))
        return
    post(Opened(view))


def read_again(view: DatasetView, reading: Reading, post: Post) -> None:
    """See how the rows of an open file are read in another way: :class:`ReadAgain`."""
    post(ReadAgain(view, view.recognize(reading)))


def scan_dataset(view: DatasetView, post: Post) -> None:
    """Find all rows of a file; closing the view ends it. Posts :class:`Scanned` as it goes on and at its end."""
    pace = _Pace()

    def report(done: int, total: int) -> None:
        if pace.is_due():
            post(Scanned(view, done / max(total, 1)))

    try:
        view.file.index(report)
    except UserError as error:
        if not view.is_closed:
            post(ScanFailed(view, error))
        return
    if view.is_guess and not view.is_closed:
        # The first rows were so long that few of them were known: the analysis sees more, and so must the list.
        read_again(view, view.reading, post)
    post(Scanned(view))


def search_dataset(view: DatasetView, search: Search, cancelled: Cancelled, post: Post) -> None:
    """Look for a text: :class:`SearchProgress` as it goes on, :class:`SearchEnded` at its end."""
    pace = _Pace()

    def report(seen: int) -> None:
        if pace.is_due():
            post(SearchProgress(view, seen))

    match = None
    try:
        match = view.search(search.term, search.start, search.step, cancelled, report, search.among)
    except UserError as error:
        if not view.is_closed:
            post(ScanFailed(view, error))
    post(SearchEnded(search.number, search.step, view, match, cancelled()))

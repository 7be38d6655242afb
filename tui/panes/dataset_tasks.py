"""What the data pane leaves to threads: opening, indexing, checking and searching; they only post messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from textual.message import Message

from core.errors import UserError
from tui.panes.dataset_view import Cancelled, DatasetView, Match

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
class Scanned(Message):
    """A background scan has come further; ``fraction`` is of the file's bytes while it is being indexed."""

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
    """A search has found a row, found none or been stopped; ``search`` is the number it was begun with."""

    search: int
    view: DatasetView
    match: Match | None
    cancelled: bool


@dataclass(frozen=True)
class Search:
    """What to look for, from where, and in which direction (1 or -1)."""

    number: int
    term: str
    start: int
    step: int


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


def open_dataset(path: Path, post: Post) -> None:
    """Open a file: :class:`Opened` or :class:`OpenFailed`."""
    try:
        view = DatasetView(path)
    except UserError as error:
        post(OpenFailed(path, error))
        return
    post(Opened(view))


def scan_dataset(view: DatasetView, cancelled: Cancelled, post: Post) -> None:
    """Index a file, then look at every row; closing the view ends both. Posts :class:`Scanned` as it goes on."""
    pace = _Pace()

    def report(fraction: float) -> None:
        if pace.is_due():
            post(Scanned(view, fraction))

    try:
        view.file.index(lambda done, total: report(done / max(total, 1)))
        post(Scanned(view))
        view.check(cancelled, lambda _: report(1.0))
    except UserError as error:
        if not view.is_closed:
            post(ScanFailed(view, error))
        return
    post(Scanned(view))


def search_dataset(view: DatasetView, search: Search, cancelled: Cancelled, post: Post) -> None:
    """Look for a text: :class:`SearchProgress` as it goes on, :class:`SearchEnded` at its end."""
    pace = _Pace()

    def report(seen: int) -> None:
        if pace.is_due():
            post(SearchProgress(view, seen))

    match = None
    try:
        match = view.search(search.term, search.start, search.step, cancelled, report)
    except UserError as error:
        if not view.is_closed:
            post(ScanFailed(view, error))
    post(SearchEnded(search.number, view, match, cancelled()))

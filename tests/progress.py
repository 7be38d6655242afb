"""Progress for tests that do not look at it."""

from __future__ import annotations


def quiet(_activity: str, _done: int | None = None, _total: int | None = None) -> None:
    """Take what is told of progress, and do nothing."""

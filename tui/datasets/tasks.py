"""Tasks on datasets in threads, with their progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from core.errors import UserError
from core.text import one_line
from tui.datasets.plan import Reading
from tui.datasets.view import DatasetView

#: Seconds between two progress reports of a scan: often enough to look alive, seldom enough to cost nothing.
REPORT_SECONDS = 0.25

_P = ParamSpec("_P")


def paced(report: Callable[_P, object]) -> Callable[_P, None]:
    """A progress callback with a limited rate."""
    last = time.monotonic()

    def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= REPORT_SECONDS:
            last = now
            report(*args, **kwargs)

    return call


async def open_dataset(path: Path, reading: Reading) -> DatasetView:
    """Open a file in a thread; on cancellation, it is closed once it is open.

    Raises:
        UserError: If it cannot be opened.
    """
    opening = asyncio.ensure_future(asyncio.to_thread(DatasetView, path, reading))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = one_line(str(error) or type(error).__name__, 200).rstrip(".")
        raise UserError(f"{one_line(str(path))} cannot be read: {reason}.", "Check the file.") from error


def _close(opened: asyncio.Future[DatasetView]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()

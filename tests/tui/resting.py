"""The rest of an app under Pilot, which waits after each key until the process has nothing to do."""

from __future__ import annotations

import asyncio
import time

import pytest

#: Seconds of one look, and the share of it that a process at rest works at most.
LOOK, SHARE = 0.004, 0.1
#: Looks in a row that find it at rest. After a single one, it may only have waited for a core.
LOOKS = 2


async def wait_for_rest(min_sleep: float = 0.0, max_sleep: float = 1.0) -> None:
    """Wait until the process is at rest, as ``textual._wait.wait_for_idle`` does in looks of 20 ms.

    Args:
        min_sleep: Seconds to wait at least.
        max_sleep: Seconds to wait at most.
    """
    began = time.monotonic()
    at_rest = 0
    while (at_rest < LOOKS or time.monotonic() - began < min_sleep) and time.monotonic() - began < max_sleep:
        worked = time.process_time()
        await asyncio.sleep(LOOK)
        at_rest = at_rest + 1 if time.process_time() - worked < LOOK * SHARE else 0


def look_often(patch: pytest.MonkeyPatch) -> None:
    """Have Pilot wait by :func:`wait_for_rest`."""
    for place in ("textual.app", "textual.pilot"):
        patch.setattr(f"{place}.wait_for_idle", wait_for_rest)


def read_often(patch: pytest.MonkeyPatch) -> None:
    """Have the app look for news of runs and of the queue several times a second."""
    for name in ("LIVE_SECONDS", "OVER_SECONDS", "LIST_SECONDS"):
        patch.setattr(f"tui.bridge.{name}", 0.2)

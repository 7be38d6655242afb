"""What Pilot waits for after a key: that the app has done what follows from it, and not a moment longer.

Textual's own Pilot looks every 20 ms whether the process still uses its CPU, and has each widget answer a message of
its own, twice for each key: a third of the time of a test that drives the app, and a tenth of its CPU time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from textual._context import active_app
from textual.app import App
from textual.message_pump import MessagePump
from textual.pilot import Pilot

#: Groups of the app's workers that run as long as it does, or as long as a question is open.
LASTING = {"sample", "follow", "list", "figures", "queue", "default"}
#: Seconds after which an app counts as settled that never rests.
_LONGEST = 1.0
#: Seconds that threads are watched for, and the share of them that they may compute when they only wait for something.
_WATCHED, _WAITING = 0.02, 0.05


@contextmanager
def pilot_that_knows() -> Iterator[None]:
    """Have Pilot look at the event loop and at the queues of messages, instead of at the CPU's time."""
    ask_all = Pilot._wait_for_screen

    async def wait_for_screen(self: Pilot[Any], timeout: float = 30.0) -> bool:
        await settle(self.app)
        if all(map(_waits_for_messages, (self.app, *self.app.screen.walk_children(with_self=True)))):
            return True
        # One is in the middle of a message: it waits for a thread, or for a process.
        return await ask_all(self, timeout)

    async def wait_for_idle(min_sleep: float = 0.0, max_sleep: float = _LONGEST) -> None:
        await settle(active_app.get(), max_sleep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pilot, "_wait_for_screen", wait_for_screen)
        patch.setattr("textual.pilot.wait_for_idle", wait_for_idle)
        patch.setattr("textual.app.wait_for_idle", wait_for_idle)
        yield


async def settle(app: App[Any], longest: float = _LONGEST) -> None:
    """Wait until an app has nothing left to do: no callback is due, all is painted, and no thread computes."""
    loop: Any = asyncio.get_running_loop()
    deadline = time.monotonic() + longest
    while time.monotonic() < deadline:
        await asyncio.sleep(0)
        if loop._ready:
            continue
        if _is_to_be_painted(app) or app.animator._animations or app._resize_event is not None:
            await asyncio.sleep(0.002)
            continue
        if _threads_at_work(app, loop) <= 0:
            return
        if await _threads_only_wait(app, loop):
            return


def _is_to_be_painted(app: App[Any]) -> bool:
    """Whether Textual paints the screen within a sixtieth of a second."""
    screens = app._screen_stack if app.is_running else []
    return bool(screens) and screens[-1].is_running and screens[-1]._update_timer._active.is_set()


def _waits_for_messages(pump: MessagePump) -> bool:
    """Whether it has handled all of its messages."""
    queue: Any = pump._message_queue
    return bool(queue.empty() and queue.ready_event._waiters)


def _threads_at_work(app: App[Any], loop: Any) -> int:
    """The number of threads that work out something, without those that last as long as the app."""
    pool = loop._default_executor
    if pool is None:
        return 0
    lasting = sum(1 for worker in app.workers if not worker.is_finished and worker.group in LASTING)
    return int(len(pool._threads) - pool._idle_semaphore._value + pool._work_queue.qsize() - lasting)


async def _threads_only_wait(app: App[Any], loop: Any) -> bool:
    """Watch the threads: whether those that are still at work wait for something."""
    computed, started = time.process_time(), time.monotonic()
    while (passed := time.monotonic() - started) < _WATCHED:
        await asyncio.sleep(0.001)
        if loop._ready or _threads_at_work(app, loop) <= 0:
            return False
    return time.process_time() - computed < passed * _WAITING

"""Watchdog of optimizer steps: detects unusually long ones, and the stage a thread is at."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType

#: A step is long from this multiple of the median, and this number of seconds.
LONG_FACTOR, LONG_SECONDS = 10.0, 30.0
#: Number of steps in the median, and its minimum.
MEDIAN_OF, MEDIAN_FROM = 64, 5


class StepWatchdog:
    """Watchdog of the training thread, which reports its steps; read by another thread.

    Args:
        clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=MEDIAN_OF)
        self._began: float | None = None
        self._told = False

    def begin(self) -> None:
        """Note the start of a step."""
        with self._guard:
            self._began, self._told = self._clock(), False

    def done(self, seconds: float) -> None:
        """Note the duration of a step in seconds."""
        with self._guard:
            self._seconds.append(seconds)

    def end(self) -> None:
        """Note that no step is running."""
        with self._guard:
            self._began = None

    def look(self) -> tuple[float, float] | None:
        """Seconds of the current step and the median, once per long step; else None."""
        with self._guard:
            if self._began is None or self._told or len(self._seconds) < MEDIAN_FROM:
                return None
            took, median = self._clock() - self._began, statistics.median(self._seconds)
            if took < max(LONG_SECONDS, LONG_FACTOR * median):
                return None
            self._told = True
            return took, median


#: Module of the backward pass; recomputed forward frames lie inside it.
_BACKWARD = "torch.autograd.graph"
#: Stage by module prefix; the innermost frame decides.
_STAGES: tuple[tuple[str, str], ...] = (
    ("core.worker.data.", "reading its rows"),
    ("core.worker.optim.", "the optimizer's update"),
    ("core.worker.process.governor", "a rest that the governor asked for"),
    ("core.worker.loss.", "the forward pass"),
    ("core.worker.fused.", "the forward pass"),
    ("transformers.", "the forward pass"),
)


def stage_of(thread: threading.Thread) -> str:
    """Stage of a step that a thread is at, as the end of a sentence; empty if its stack does not show it.

    Args:
        thread: The training thread.
    """
    modules = list(_modules(sys._current_frames().get(thread.ident or 0)))
    if _BACKWARD in modules:
        return "the backward pass"
    return next((stage for module in modules for prefix, stage in _STAGES if f"{module}.".startswith(prefix)), "")


def place_of(thread: threading.Thread) -> str:
    """Place in the program that a thread is at: its stage of a step, and the innermost function of our own, ``attend
    (core.worker.control_point)``; empty if its stack does not show it.

    Args:
        thread: The training thread.
    """
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("core."):
            function = f"{frame.f_code.co_name} ({module})"
            return f"{stage}, in {function}" if (stage := stage_of(thread)) else function
        frame = frame.f_back
    return ""


def _modules(frame: FrameType | None) -> Iterator[str]:
    """Modules of a stack's frames, innermost first."""
    while frame is not None:
        yield str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back

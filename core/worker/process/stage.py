"""Stage of an optimizer step: what its thread is at, read from the thread's stack while it runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType

#: What runs the backward pass; inside it are frames of the forward pass, where that is computed again.
_BACKWARD = "torch.autograd.graph"
#: Modules whose frames tell the stage; of several the innermost one.
_STAGES: tuple[tuple[str, str], ...] = (
    ("core.worker.data.", "reading its rows"),
    ("core.worker.optim.", "the optimizer's update"),
    ("core.worker.process.throttle", "a rest that the governor asked for"),
    ("core.worker.loss.", "the forward pass"),
    ("core.worker.fused.", "the forward pass"),
    ("transformers.", "the forward pass"),
)


def stage_of(thread: threading.Thread) -> str:
    """The stage of a step that a thread is at, as the end of a sentence; empty where its stack does not tell.

    Args:
        thread: The training thread.
    """
    modules = list(_modules(sys._current_frames().get(thread.ident or 0)))
    if _BACKWARD in modules:
        return "the backward pass"
    return next((stage for module in modules for prefix, stage in _STAGES if f"{module}.".startswith(prefix)), "")


def place_of(thread: threading.Thread) -> str:
    """The place in the program that a thread is at: its stage of a step where it is at one, else the innermost function
    of the program's own, ``attend (core.worker.control_point)``; empty where its stack does not tell.

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
    """The modules of a stack's frames, the innermost one first."""
    while frame is not None:
        yield str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back

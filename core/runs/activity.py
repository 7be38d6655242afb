"""Activity of a live run in words: the requests that wait for it, how far its step or evaluation is, the time left."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.runs.eta import Eta
from core.runs.state import RunState, StepProgress
from core.runs.timings import Timings
from core.units import format_duration

#: Requests, the one that decides first, and how a run that is about to carry them out is called.
_DOING = {
    "stop": "stopping",
    "park": "parking",
    "pause": "pausing",
    "checkpoint": "saving",
    "skip_evaluation": "skipping the evaluation",
    "resume": "resuming",
}
#: Parts of an evaluation, and of a step.
_PARTS = {
    "micro_batches": "micro-batch",
    "evaluation": "evaluating",
    "answers": "answering held-out rows",
    "samples": "answering samples",
    "probe": "measuring the general probe",
    "checkpoint": "saving a checkpoint",
}
#: Steps that take less than so many seconds are over before a line about them has been read.
LONG_STEP_SECONDS = 3.0
#: What an evaluation does besides measuring the loss, in short.
_BESIDE_LOSS = {"answers": "answers", "samples": "samples", "probe": "probe"}


def doing(pending: Sequence[str]) -> str:
    """The requests that wait in one word, ``pausing``; empty where there are none."""
    return next((word for name, word in _DOING.items() if name in pending), "")


def pending_words(
    pending: Sequence[str], state: RunState, timings: Timings, now: float, *, is_short: bool = False
) -> str:
    """The requests that wait: ``pausing after this step (≤ 20 s)``, ``stopping …``; empty where there are none.

    Args:
        pending: The requests.
        state: Of the run.
        timings: Of the run.
        now: Unix seconds.
        is_short: Whether to leave out what goes without saying: ``pausing (≤ 20 s)``.
    """
    word = doing(pending)
    if not word:
        return ""
    is_in_step = state.state == "training" and timings.evaluation is None and timings.phase == "training"
    if not is_in_step or word == _DOING["skip_evaluation"]:
        return f"{word} …"
    left = step_seconds_left(state, timings, now)
    bound = f" (≤ {_whole(left)})" if left is not None else " …" if is_short else ""
    return f"{word}{bound}" if is_short else f"{word} after this step{bound}"


def step_seconds_left(state: RunState, timings: Timings, now: float) -> float | None:
    """Seconds that the present step still takes at most, if it is no slower than the slowest of the recent ones."""
    slowest, began = timings.slowest_step_seconds, state.step_started or timings.anchor
    if slowest is None or began is None:
        return None
    left = slowest - max(now - began, 0.0)
    return left if left > 0 else None


def _whole(seconds: float) -> str:
    """A bound in whole seconds: ``20 s``, ``1m 30s``."""
    return f"{math.ceil(seconds)} s" if seconds <= 59 else format_duration(math.ceil(seconds))


def progress_words(progress: StepProgress | None) -> str:
    """Progress within a step or an evaluation: ``micro-batch 3/8``, ``evaluating 18/80``; empty where there is none."""
    if progress is None:
        return ""
    name = _PARTS.get(progress.what, progress.what.replace("_", " "))
    return f"{name} {progress.done}/{progress.total}" if progress.total else name


def evaluation_count(progress: StepProgress | None, done: int | None, total: int | None) -> str:
    """How far an evaluation is, behind its name: ``18/80``, ``probe 19/40``, ``samples 1/3``; empty where it is not
    counted.

    Args:
        progress: Of the run. What comes after the loss has no phase of its own.
        done: Rows done, by the phase.
        total: Rows of the phase.
    """
    part = _BESIDE_LOSS.get(progress.what) if progress is not None else None
    if progress is not None and part is not None:
        return f"{part} {progress.done}/{progress.total}" if progress.total else part
    return f"{done}/{total}" if done is not None and total else ""


def step_progress(state: RunState, timings: Timings, now: float) -> StepProgress | None:
    """Progress within the present step where it is worth telling: of several micro-batches, in steps that take long."""
    progress, began = state.progress, state.step_started
    if progress is None or progress.what != "micro_batches" or progress.total < 2:
        return None
    seconds = max(timings.seconds_per_step or 0.0, now - began if began is not None else 0.0)
    return progress if seconds >= LONG_STEP_SECONDS else None


def long_progress(state: RunState, timings: Timings, now: float) -> StepProgress | None:
    """Progress within an evaluation, a checkpoint, or a step that takes long."""
    progress = state.progress
    if progress is not None and progress.what != "micro_batches":
        return progress
    return step_progress(state, timings, now)


def eta_words(eta: Eta | None, *, split: bool = False) -> str:
    """Time left, ``4m 10s``, with ``~`` while it is a guess: ``~4m 10s``, or ``~`` alone while it is unknown.

    Args:
        eta: The time left; None while it is unknown.
        split: Whether to say what it is spent on, where that is more than steps: ``4m 10s (steps 2m 05s, evaluation
            2m 05s)``.
    """
    if eta is None:
        return "~"
    words = ("~" if eta.is_rough else "") + _left(eta.seconds)
    parts = {"steps": eta.steps, "evaluation": eta.evaluation, "saving": eta.saving}
    told = [f"{name} {_left(seconds)}" for name, seconds in parts.items() if seconds >= 1]
    is_worth_it = split and len(told) > 1 and eta.seconds - eta.steps >= 0.05 * eta.seconds
    return f"{words} ({', '.join(told)})" if is_worth_it else words


def _left(seconds: float) -> str:
    """Time left in whole seconds, so that its width does not change with each that goes by."""
    whole = math.ceil(seconds - 0.5) if seconds >= 1 else math.ceil(seconds)
    return f"{whole}s" if whole < 60 else format_duration(whole)

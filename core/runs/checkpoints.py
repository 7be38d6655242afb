"""The checkpoints of a run as a list: what each holds, and why it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.history import RunHistory
from core.runs.removal import directory_size
from core.runs.store import Run, complete_checkpoints
from core.small_files import read_json

#: Most bytes of a manifest.
_MANIFEST_LIMIT = 16 << 20


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint of a run."""

    step: int
    path: Path
    bytes: int
    eval_loss: float | None
    """The loss of the evaluation at its step; None where there was none."""
    reasons: tuple[str, ...]
    """Why it is kept: ``best``, ``newest``, ``result``; empty for one of the last few."""
    time: float
    """When it was written, in Unix seconds."""


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; empty if it cannot be read. The worker verifies its hashes."""
    try:
        found = read_json(checkpoint / "manifest.json", _MANIFEST_LIMIT, finite=False)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def newest_manifest(run: Run) -> dict[str, Any]:
    """What the newest checkpoint of a run says of itself; empty without one."""
    return next((found for path in reversed(complete_checkpoints(run)) if (found := read_manifest(path))), {})


def kept_checkpoints(run: Run, history: RunHistory) -> list[KeptCheckpoint]:
    """The complete checkpoints of a run, the newest first.

    Args:
        run: The run.
        history: Its history.
    """
    paths = complete_checkpoints(run)
    losses = {event.step: event.loss for event in history.evals}
    best = _best_step(run, history)
    result = history.end.result_step if history.end is not None and history.end.adapter else None
    found = []
    for path in reversed(paths):
        step = int(path.name.removeprefix("step-"))
        named = (("best", step == best), ("newest", path == paths[-1]), ("result", step == result))
        found.append(
            KeptCheckpoint(
                step,
                path,
                directory_size(path),
                losses.get(step),
                tuple(name for name, is_so in named if is_so),
                _written(path),
            )
        )
    return found


def _best_step(run: Run, history: RunHistory) -> int | None:
    """The step that the worker counts as the best, else the one with the least loss."""
    best = newest_manifest(run).get("best")
    if isinstance(best, dict) and type(best.get("step")) is int:
        return int(best["step"])
    return min(history.evals, key=lambda event: event.loss).step if history.evals else None


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

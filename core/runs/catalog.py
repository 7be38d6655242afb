"""The list of runs, read again and again at little cost: what cannot have changed is not read twice."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from core.runs.history import last_step
from core.runs.store import Run, list_runs
from core.text import one_line
from tui.state import RunRow


@dataclass(frozen=True)
class _Known:
    """What was found about a run, and the modification times of its files then."""

    stamp: tuple[int, int]
    model: str
    loss: float | None


class RunCatalog:
    """Reads all runs into rows; belongs to one thread."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def rows(self) -> list[RunRow]:
        """All runs as they are now, newest first."""
        runs = list_runs()
        found = [self._row(run) for run in runs]
        alive = {run.id for run in runs}
        self._known = {identity: known for identity, known in self._known.items() if identity in alive}
        return found

    def _row(self, run: Run) -> RunRow:
        state = run.state()
        stamp = (_modified(run.config_path), _modified(run.events_path))
        known = self._known.get(run.id)
        if known is None or known.stamp != stamp:
            same_config = known is not None and known.stamp[0] == stamp[0]
            model = known.model if known is not None and same_config else read_model(run)
            step = last_step(run)
            known = self._known[run.id] = _Known(stamp, model, step.loss if step is not None else None)
        started = started_at(run)
        ended = time.time() if not state.is_over else max(state.updated, started)
        return RunRow(
            run=run,
            state=state.state,
            model=known.model,
            step=state.step,
            total_steps=state.total_steps,
            loss=known.loss,
            started=started,
            seconds=max(ended - started, 0.0),
        )


def _modified(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def started_at(run: Run) -> float:
    """When a run was made, in Unix seconds: by its id, else by its directory."""
    return run.created.timestamp() if run.created is not None else _modified(run.path) / 1e9


def read_model(run: Run) -> str:
    """The base model's name and the method of a run; empty where its configuration cannot be read."""
    values = run.values()
    base, kind, rank = (values.get(name) for name in ("model.base", "method.name", "method.rank"))
    if not isinstance(base, str):
        return ""
    name = one_line(Path(base).name or base, 60).removesuffix(".gguf")
    is_known = isinstance(kind, str) and type(rank) is int and 0 < rank < 1 << 31
    return f"{name} · {one_line(str(kind), 20)} r{rank}" if is_known else name

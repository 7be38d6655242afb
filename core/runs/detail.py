"""The account of one run beside the list of runs; unlike its rows it is read for the run under the cursor only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.catalog import MOST_FILES, file_names
from core.runs.events import FinishedEvent
from core.runs.glimpse import glimpse_history, read_glimpse
from core.runs.history import RunHistory, last_evaluation, read_history
from core.runs.series import Series
from core.runs.store import Run
from core.runs.tail import last_events
from core.text import one_line
from core.units import exact_number


@dataclass(frozen=True)
class Change:
    """An option whose value differs between two runs; the values as they are written, without directories."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class RunDetail:
    """An account of one run.

    Args:
        run: The run.
        loss: The loss by step.
        evals: Loss of the first and of the last evaluation; empty before one.
        exact_matches: Share of exact answers in them, likewise.
        reason: Why it ended, and what to do about it; may be empty.
        data: Names of the files it was trained on.
        before: The run that it is compared with; None for the first one.
        changes: Options that differ from that run's.
    """

    run: Run
    loss: Series
    evals: tuple[float, ...]
    exact_matches: tuple[float, ...]
    reason: str
    data: str
    before: Run | None
    changes: tuple[Change, ...]


def read_detail(run: Run, before: Run | None) -> RunDetail:
    """The account of a run, compared with another one."""
    state, values = run.state(), run.values()
    history = _read_long(run) or read_history(run)
    reason = history.end_reason(state)
    if state.refused:
        reason = f"{reason.rstrip('.')}. Refused by eval.gate: {state.refused}".lstrip(". ")
    # Of a run that has done all it should, it is the command that talks to it.
    is_wanted = state.is_over and state.state != "finished"
    hint = history.end.hint if history.end is not None and is_wanted else ""
    ends = [history.evals[0], history.evals[-1]] if history.evals else []
    matches = [event.exact_match for event in ends if event.exact_match is not None]
    return RunDetail(
        run=run,
        loss=history.loss,
        evals=tuple(event.loss for event in ends),
        exact_matches=tuple(matches),
        reason=" ".join(f"{text.rstrip('.')}." for text in (one_line(reason, 300), one_line(hint, 300)) if text),
        data=", ".join(file_names(values.get("data.train"))[:MOST_FILES]),
        before=before,
        changes=tuple(_changes(before.values(), values)) if before is not None else (),
    )


def _read_long(run: Run) -> RunHistory | None:
    """What the account of a run with a long record needs: some of its steps, its last evaluation and its end.

    None for a run whose record is short.
    """
    glimpse = read_glimpse(run)
    if glimpse is None:
        return None
    history = glimpse_history(glimpse)
    evaluated = last_evaluation(run)
    history.evals = [evaluated] if evaluated is not None else []
    history.end = next((event for event in last_events(run.events_path) if isinstance(event, FinishedEvent)), None)
    return history


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    from core.config.compare import differences

    if not before or not after:
        return []
    return [
        Change(name, shown_value(name, value), shown_value(name, after.get(name)))
        for name, value in differences(after, before).items()
    ]


def shown_value(name: str, value: Any) -> str:
    """A value of an option for a narrow column: the end of a path, a float without noise, ``–`` for none."""
    from core.config.explain import shown
    from core.config.schema import find_option

    if value is None and (option := find_option(name)) is not None:
        value = option.default
    if value is None:
        return "–"
    if name.startswith("data.") and (names := file_names(value)):
        return ", ".join(names[:MOST_FILES])
    if type(value) is float:
        return exact_number(float(f"{value:.6g}"))
    # A path in full has no room; its end says which one it is.
    return Path(value).name or value if isinstance(value, str) and value.startswith("/") else shown(value).strip('"')

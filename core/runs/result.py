"""The result of an ended run: what was gained, what it took, and what is kept."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core.runs.energy import Tariff
from core.runs.events import EvalEvent, FinishedEvent
from core.runs.history import RunHistory
from core.runs.series import Series
from core.runs.state import RunState
from core.runs.store import Run
from core.text import one_line
from core.units import format_fixed, format_number

#: Most steps at the end of a run whose mean is its last training loss, and the part of the run that they are at most.
LAST_STEPS, LAST_SHARE = 50, 10
#: The name of the loss on the general probe.
PROBE_LOSS = "probe loss"
#: Least rise of it that is spoken of.
FORGOTTEN = 0.005
#: Most files of a result whose sizes are added up.
MOST_FILES = 1000

Unit = Literal["share", "loss"]


@dataclass(frozen=True)
class Measure:
    """A figure before and after training; ``before`` is None where it was measured only once."""

    name: str
    before: float | None
    after: float
    unit: Unit = "loss"
    course: tuple[float, ...] = ()
    """Its values over all evaluations."""
    note: str = ""
    """The same in another unit."""

    def words(self, value: float | None) -> str:
        """A value of it as it is shown; ``–`` where there is none."""
        return format_fixed(value, 2) if self.unit == "share" else format_number(value)


@dataclass(frozen=True)
class RunResult:
    """The result of a run that has ended in one way or another."""

    state: str
    """Its end state, or ``lost``."""
    step: int
    total_steps: int
    seconds: float
    """Seconds of work, without pauses and the time between a stop and its continuation."""
    energy_wh: float | None
    """Energy over all starts, in Wh; None where no device reported any."""
    reason: str
    """Why it ended; empty where all steps were done."""
    hint: str
    measures: tuple[Measure, ...]
    before: str
    """When ``before`` was measured: ``before``, or ``step 10``."""
    after: str
    """When ``after`` was measured: ``after``, or ``step 30``."""
    path: Path | None
    """Directory of the adapter, or of the model where its own weights were trained; of the newest checkpoint's where
    the run did not finish. None where it is not there."""
    bytes: int | None
    is_model: bool
    saved_step: int | None
    """Step of the newest checkpoint."""
    tariff: Tariff = field(default_factory=Tariff)
    """The price of the energy."""
    refused: str = ""
    """What it misses of ``eval.gate``; empty where it passes."""

    @property
    def lost_steps(self) -> int:
        """Steps done after the newest checkpoint."""
        return max(self.step - (self.saved_step or 0), 0) if self.state != "finished" else 0


def result_of(run: Run, state: RunState, history: RunHistory) -> RunResult:
    """The result of an ended run. Reads the sizes of the files of its result, and nothing else."""
    end, step = history.end, max(history.step, state.step)
    before, after = _compared(history.evals, end)
    measures = _measures(history, before, after)
    if after is not None and before is None and state.state == "finished":
        # Evaluated only once, this alone tells what it has gained.
        measures += _training_loss(history.loss)
    path = result_path(run, end)
    size = None if path is None else _size(path)
    return RunResult(
        state=state.state,
        step=step,
        total_steps=state.total_steps,
        seconds=history.working_seconds,
        energy_wh=history.energy_wh,
        reason=history.end_reason(state),
        hint=end.hint if end is not None else "",
        measures=measures,
        before="before" if before is None or before.step == 0 else f"step {before.step}",
        after="after" if after is None or (after.step == step and state.state == "finished") else f"step {after.step}",
        path=path if size is not None else None,
        bytes=size,
        is_model=end is not None and end.adapter == "model",
        saved_step=history.checkpoints[-1].step if history.checkpoints else None,
        tariff=Tariff.of(run.values()),
        refused=refusal_of(state, end),
    )


def refusal_of(state: RunState, end: FinishedEvent | None) -> str:
    """What the result of a finished run misses of ``eval.gate``, by its state or else by its last event."""
    return state.refused or (one_line(end.refused, 600) if end is not None and end.refused else "")


def result_path(run: Run, end: FinishedEvent | None) -> Path | None:
    """The directory of an ended run's adapter or model; None where it has none."""
    if end is None or not end.adapter:
        return None
    # It is in the run directory, whatever a record says.
    is_inside = ".." not in Path(end.adapter).parts and not Path(end.adapter).is_absolute() and "\0" not in end.adapter
    return run.path / end.adapter if is_inside else None


def _compared(evals: Sequence[EvalEvent], end: FinishedEvent | None) -> tuple[EvalEvent | None, EvalEvent | None]:
    """The first evaluation, if it is not the last one, and that of the result: the last one, or the best."""
    if not evals:
        return None, None
    after = evals[-1]
    if end is not None and end.result_step != end.step:
        after = next((event for event in evals if event.step == end.result_step), after)
    return (evals[0] if evals[0].step < after.step else None), after


def _measures(history: RunHistory, before: EvalEvent | None, after: EvalEvent | None) -> tuple[Measure, ...]:
    if after is None:
        return _training_loss(history.loss)
    measured: list[tuple[str, Unit, Callable[[EvalEvent], float | None]]] = [
        ("exact match", "share", lambda event: event.exact_match),
        ("valid JSON", "share", lambda event: event.valid_json),
        ("reward accuracy", "share", lambda event: event.reward_accuracy),
        ("reward margin", "loss", lambda event: event.reward_margin),
        ("eval loss", "loss", lambda event: event.loss),
    ]
    found = []
    for name, unit, read in measured:
        value = read(after)
        if value is None:
            continue
        course = tuple(figure for event in history.evals if (figure := read(event)) is not None)
        note = _perplexity(before, after) if name == "eval loss" else ""
        found.append(Measure(name, None if before is None else read(before), value, unit, course, note))
    return (*found, *_probe(history, before, after))


def _probe(history: RunHistory, before: EvalEvent | None, after: EvalEvent) -> tuple[Measure, ...]:
    """The loss on the general probe, which is measured before the first step whether or not the rows are."""
    probe = history.probe_loss
    if after.probe_loss is None:
        return ()
    first = probe.values[0] if probe.steps and probe.steps[0] < after.step else None
    note = "" if first is None else forgetting(after.probe_loss - first)
    if note and before is not None and probe.steps[0] < before.step:
        # The heading names the first evaluation, which came later.
        note = f"since step {probe.steps[0]}: {note}"
    return (Measure(PROBE_LOSS, first, after.probe_loss, "loss", tuple(probe.values), note),)


def forgetting(rise: float) -> str:
    """A rise of the loss on the probe in words: ``0.12 forgotten``."""
    return f"{format_fixed(rise, 2)} forgotten" if rise >= FORGOTTEN else "nothing forgotten"


def _perplexity(before: EvalEvent | None, after: EvalEvent) -> str:
    if after.perplexity is None:
        return ""
    first = f"{format_number(before.perplexity)} → " if before is not None and before.perplexity is not None else ""
    return f"perplexity {first}{format_number(after.perplexity)}"


def _training_loss(loss: Series) -> tuple[Measure, ...]:
    """The loss of the first step, which the untouched model has, and the mean of the last ones."""
    first = next((value for value in loss.values if math.isfinite(value)), None)
    if first is None or loss.last_step is None or len(loss) < 2:
        return ()
    last = loss.mean(loss.last_step - min((loss.last_step - loss.steps[0]) // LAST_SHARE, LAST_STEPS))
    return () if last is None else (Measure("training loss", first, last),)


def _size(directory: Path) -> int | None:
    """Bytes of the files in a directory; None where there is none, or it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            files = [entry for entry, _ in zip(entries, range(MOST_FILES), strict=False)]
            return sum(entry.stat(follow_symlinks=False).st_size for entry in files if entry.is_file()) or None
    except OSError:
        return None

"""Result of a run: the bars of ``eval.gate``, gains and costs, its end in a sentence, and its account in the list."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.config.gate import Bar, Figure
from core.runs.catalog.rows import MOST_FILES, file_names
from core.runs.catalog.trained import checkpoint_steps, taken_step
from core.runs.outlook.energy import Tariff
from core.runs.record.events import EvalEvent, Event, FinishedEvent, ProbeEvent
from core.runs.record.history import RunHistory, last_evaluation, last_step, read_glimpse, read_history
from core.runs.record.sentences import brief_id
from core.runs.record.series import Series
from core.runs.record.state import RunState
from core.runs.record.store import Run
from core.text import one_line
from core.units import exact_number, format_ago, format_fixed, format_number

#: Separator between missed bars.
_BETWEEN = "; "


@dataclass
class GateFigures:
    """The figures for a gate, gathered from the events of a run.

    Args:
        step: The step of the result.
    """

    step: int
    before: EvalEvent | None = None
    """The evaluation of the untouched model."""
    after: EvalEvent | None = None
    """The evaluation of the result."""
    probe_before: float | None = None
    """The loss on the probe of the untouched model."""

    @classmethod
    def of(cls, events: Iterable[Event], step: int) -> GateFigures:
        """Figures in a run's events; of several evaluations of a step, the last counts."""
        found = cls(step)
        for event in events:
            if isinstance(event, ProbeEvent) and event.step == 0:
                found.probe_before = event.loss
            elif isinstance(event, EvalEvent):
                if event.step == 0:
                    found.before = event
                    found.probe_before = event.probe_loss if event.probe_loss is not None else found.probe_before
                if event.step == step:
                    found.after = event
        return found

    def values(self, figure: Figure) -> tuple[float | None, float | None]:
        """A figure before training and of the result; None if it was not measured."""
        before: float | None = getattr(self.before, figure, None)
        if figure == "probe_loss":
            before = self.probe_before
        after: float | None = getattr(self.after, figure, None)
        return before, after


def judge(bars: Sequence[Bar], figures: GateFigures) -> str:
    """Missed bars, a clause each; empty if all are met. A figure that was not measured meets no bar."""
    return _BETWEEN.join(filter(None, (_miss(bar, figures) for bar in bars)))


def _miss(bar: Bar, figures: GateFigures) -> str:
    before, after = figures.values(bar.figure)
    if after is None:
        return f"{bar.figure} was not measured ({bar.text})"
    if bar.needs_before and before is None:
        return f"{bar.figure} of the untouched model was not measured ({bar.text})"
    if bar.is_met(after, before):
        return ""
    limit = bar.limit(before)
    # A bar with "before" in it shows neither that value nor the limit.
    wanted = f"{bar.comparison} {format_number(limit)}"
    if not bar.needs_before:
        return f"{bar.figure} is {format_number(after)} and should be {wanted}"
    return f"{bar.figure} is {format_number(after)} and should be {wanted} ({bar.text}, before {format_number(before)})"


#: The name of the loss on the general probe.
PROBE_LOSS = "probe loss"
#: Least rise of it that is reported.
FORGOTTEN = 0.005
#: A smaller rise does not show in answers.
NOTICEABLE = 0.1
#: Relative difference of held-out losses that so many rows resolve; with fewer rows it is larger, as noise is.
RESOLUTION, RESOLVING_ROWS = 0.02, 200
#: Most files of a result whose sizes are added up.
_MOST_ENTRIES = 1000

Unit = Literal["share", "loss"]


@dataclass(frozen=True)
class Measure:
    """A figure before and after training; ``before`` is None if it was measured only once."""

    name: str
    before: float | None
    after: float
    unit: Unit = "loss"
    course: tuple[float, ...] = ()
    """Its values over all evaluations."""
    note: str = ""
    """The same in another unit, or what it means."""
    is_explained: bool = False
    """True if it is not understood without its note, which is then shown at every width."""

    def words(self, value: float | None) -> str:
        """A value as it is shown; ``–`` for None."""
        return format_fixed(value, 2) if self.unit == "share" else format_number(value)


@dataclass(frozen=True)
class BetterStep:
    """A kept checkpoint that is better than the result as the run wrote it, or was taken in its place."""

    step: int
    loss: float | None
    """Its held-out loss; None if it was not measured."""
    own: int
    """The step of the result as the run wrote it."""
    is_taken: bool

    @property
    def told(self) -> str:
        """The step in words: ``step 85 was better (0.546)``."""
        loss = "" if self.loss is None else f" ({format_number(self.loss)})"
        return f"step {self.step} {'is taken as the result' if self.is_taken else 'was better'}{loss}"


@dataclass(frozen=True)
class RunResult:
    """The result of an ended run."""

    state: str
    """Its end state, or ``lost``."""
    step: int
    total_steps: int
    seconds: float
    """Seconds of work, without pauses and the time between a stop and its continuation."""
    energy_wh: float | None
    """Energy over all starts, in Wh; None if no device reported any."""
    reason: str
    """Why it ended; empty if all steps were done."""
    hint: str
    measures: tuple[Measure, ...]
    before: str
    """When ``before`` was measured: ``before``, or ``step 10``."""
    after: str
    """When ``after`` was measured: ``after``, or ``step 30``."""
    path: Path | None
    """Directory of the adapter or of the model, in the newest checkpoint if the run did not finish; None if it is
    missing."""
    bytes: int | None
    is_model: bool
    saved_step: int | None
    """Step of the newest checkpoint."""
    tariff: Tariff = field(default_factory=Tariff)
    """The price of the energy."""
    refused: str = ""
    """Missed bars of ``eval.gate``; empty if it passes."""
    better: BetterStep | None = None
    """A better step that can be taken as the result, or the one that was."""

    @property
    def lost_steps(self) -> int:
        """Steps done after the newest checkpoint."""
        return max(self.step - (self.saved_step or 0), 0) if self.state != "finished" else 0


def result_of(run: Run, state: RunState, history: RunHistory) -> RunResult:
    """The result of an ended run. Reads the sizes of the files of its result, and nothing else."""
    end, step = history.end, max(history.step, state.step)
    better = _better(run, history.evals, end)
    taken = better.step if better is not None and better.is_taken else None
    before, after = _compared(history.evals, end, taken)
    measures = _measures(history, before, after)
    if after is not None and before is None and state.state == "finished":
        # With a single evaluation, this is the only sign of a gain.
        measures += _training_loss(history.loss)
    path = result_path(run, end) if taken is None else run.checkpoints_path / f"step-{taken:08d}" / "adapter"
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
        better=better,
    )


def _better(run: Run, evals: Sequence[EvalEvent], end: FinishedEvent | None) -> BetterStep | None:
    """The step that was taken as the result, else the kept step with the lowest held-out loss, if that is below
    the loss of the result by more than the rows resolve."""
    if end is None or end.adapter != run.adapter_path.name:
        return None
    own, losses = end.result_step, {event.step: event.loss for event in evals if math.isfinite(event.loss)}
    if (taken := taken_step(run)) is not None:
        return BetterStep(taken, losses.get(taken), own, is_taken=True)
    best = min((step for step in checkpoint_steps(run) if step in losses), key=lambda step: losses[step], default=own)
    rows = next((event.rows for event in evals if event.step == best and event.rows), RESOLVING_ROWS)
    if own not in losses or losses[best] >= losses[own] * (1 - RESOLUTION * math.sqrt(RESOLVING_ROWS / rows)):
        return None
    return BetterStep(best, losses[best], own, is_taken=False)


def refusal_of(state: RunState, end: FinishedEvent | None) -> str:
    """Missed bars of ``eval.gate`` of a finished run, by its state or else by its last event."""
    return state.refused or (one_line(end.refused, 600) if end is not None and end.refused else "")


def result_path(run: Run, end: FinishedEvent | None) -> Path | None:
    """The directory of an ended run's adapter or model; None without one."""
    if end is None or not end.adapter:
        return None
    # A record may come from anywhere; the result is always in the run directory.
    is_inside = ".." not in Path(end.adapter).parts and not Path(end.adapter).is_absolute() and "\0" not in end.adapter
    return run.path / end.adapter if is_inside else None


def _compared(
    evals: Sequence[EvalEvent], end: FinishedEvent | None, taken: int | None
) -> tuple[EvalEvent | None, EvalEvent | None]:
    """The first evaluation, if there are several, and the evaluation of the result: the last one, the best, or that of
    the step that was taken."""
    if not evals or (taken is not None and all(event.step != taken for event in evals)):
        return None, None
    after = evals[-1]
    if end is not None and (taken is not None or end.result_step != end.step):
        after = next((event for event in evals if event.step == (taken or end.result_step)), after)
    return (evals[0] if evals[0].step < after.step else None), after


def _measures(history: RunHistory, before: EvalEvent | None, after: EvalEvent | None) -> tuple[Measure, ...]:
    if after is None:
        return (*_corrected(history), *_training_loss(history.loss))
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
    return (*_corrected(history), *found, *_probe(history, before, after))


def _corrected(history: RunHistory) -> tuple[Measure, ...]:
    """Share of the corrected questions that are answered as the user wants, word for word or as the same JSON."""
    asked: dict[int, list[bool]] = {}
    for sample in history.samples:
        if sample.correction:
            asked.setdefault(sample.step, []).append(bool(sample.exact_match))
    if len(asked) < 2:
        return ()
    first, last = asked[min(asked)], asked[max(asked)]
    pairs = list(zip(first, last, strict=False))
    right, wrong = (sum(pair == flip for pair in pairs) for flip in ((False, True), (True, False)))
    note = f"{right} of {len(pairs)} turned right" + (f", {wrong} turned wrong" if wrong else "")
    shares = tuple(statistics.fmean(answers) for _, answers in sorted(asked.items()))
    return (Measure("corrected answers", shares[0], shares[-1], "share", shares, note),)


def _probe(history: RunHistory, before: EvalEvent | None, after: EvalEvent) -> tuple[Measure, ...]:
    """The loss on the general probe, which is always measured before the first step."""
    probe = history.probe_loss
    if after.probe_loss is None:
        return ()
    first = probe.values[0] if probe.steps and probe.steps[0] < after.step else None
    # The heading names the first evaluation, which may be later.
    since = f" since step {probe.steps[0]}" if before is not None and probe.steps[0] < before.step else ""
    # The difference of the figures as they are shown.
    note = "" if first is None else forgetting(round(after.probe_loss, 2) - round(first, 2), since)
    return (Measure(PROBE_LOSS, first, after.probe_loss, "loss", tuple(probe.values), note, is_explained=True),)


def forgetting(rise: float, since: str = "") -> str:
    """A rise of the probe loss in words, with the time of the comparison if the reader does not see it."""
    if rise < FORGOTTEN:
        return f"nothing forgotten{since}"
    meaning = "hardly noticeable" if rise < NOTICEABLE else "it answers general questions worse"
    return f"{format_fixed(rise, 2)} forgotten{since}: {meaning}"


def _perplexity(before: EvalEvent | None, after: EvalEvent) -> str:
    if after.perplexity is None:
        return ""
    first = f"{format_number(before.perplexity)} → " if before is not None and before.perplexity is not None else ""
    return f"perplexity {first}{format_number(after.perplexity)}"


def _training_loss(loss: Series) -> tuple[Measure, ...]:
    """The loss of the first step, which is the untouched model's, and the median of the last steps."""
    first = next((value for value in loss.values if math.isfinite(value)), None)
    if first is None or (settled := loss.settled()) is None:
        return ()
    last, count = settled
    note = f"the first step → the median of the last {count}" if count > 1 else ""
    return (Measure("training loss", first, last, note=note, is_explained=True),)


def _size(directory: Path) -> int | None:
    """Bytes of the files in a directory; None if it is missing, empty or unreadable."""
    try:
        with os.scandir(directory) as entries:
            files = [entry for entry, _ in zip(entries, range(_MOST_ENTRIES), strict=False)]
            return sum(entry.stat(follow_symlinks=False).st_size for entry in files if entry.is_file()) or None
    except OSError:
        return None


#: States whose reason says more than their figures.
_FAILED = ("failed", "lost")


@dataclass(frozen=True)
class RunOutcome:
    """The end of a run."""

    run: Run
    state: RunState
    loss: float | None = None
    """Loss of the last step; None without a step."""
    exact_match: float | None = None
    """Share of held-out rows answered exactly, at the last evaluation; None if it was not measured."""

    @property
    def ended(self) -> float:
        """Time of the last state update in Unix seconds: the end, or the last sign of life of a lost run."""
        return self.state.updated

    def tell(self, now: float) -> str:
        """The end in a sentence, ``203633-faq finished 12 min ago while you were away: …``.

        Args:
            now: Unix seconds.
        """
        name, state = self.state.state, self.state
        step = f" at step {state.step} of {state.total_steps}" if state.step and state.total_steps else ""
        where = step if name != "finished" else ""
        head = f"{brief_id(self.run.id)} {_VERBS.get(name, name)}{where} {format_ago(now - self.ended)}"
        reason = one_line(state.reason, 200).rstrip(".")
        told = [reason] if reason and name in _FAILED else self._numbers()
        return f"{head} while you were away" + (f": {', '.join(told)}." if told else ".")

    def _numbers(self) -> list[str]:
        if self.state.refused:
            return [f"its result is refused by eval.gate: {one_line(self.state.refused, 200)}"]
        found = [f"loss {format_number(self.loss)}"] if self.loss is not None else []
        if self.exact_match is not None:
            found.append(f"exact match {format_fixed(self.exact_match, 2)}")
        return found


_VERBS = {"stopped": "was stopped", "lost": "was lost"}


def read_outcome(run: Run) -> RunOutcome | None:
    """The end of a run; None while it is live, or if its state cannot be read."""
    state = run.state()
    if not state.is_over or not state.updated:
        return None
    step = last_step(run)
    measured = last_evaluation(run)
    return RunOutcome(
        run, state, step.loss if step is not None else None, measured.exact_match if measured is not None else None
    )


def ended_since(run: Run, since: float) -> bool:
    """True if a run has ended after a time, in Unix seconds."""
    state = run.state()
    return state.is_over and state.updated > since


@dataclass(frozen=True)
class OptionChange:
    """An option that differs between two runs; values as written, without directories."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class RunDetail:
    """An account of one run.

    Args:
        run: The run.
        loss: The loss by step.
        evals: Loss of the first and of the last evaluation; empty before the first.
        exact_matches: Share of exact answers in them.
        reason: Why it ended, and a hint; may be empty.
        data: Names of its training files.
        before: The run it is compared with; None for the first run.
        changes: Options that differ from that run.
    """

    run: Run
    loss: Series
    evals: tuple[float, ...]
    exact_matches: tuple[float, ...]
    reason: str
    data: str
    before: Run | None
    changes: tuple[OptionChange, ...]


def read_detail(run: Run, before: Run | None) -> RunDetail:
    """The account of a run, compared with another run."""
    state, values = run.state(), run.values()
    history = read_glimpse(run) or read_history(run)
    reason = history.end_reason(state)
    if state.refused:
        reason = f"{reason.rstrip('.')}. Refused by eval.gate: {state.refused}".lstrip(". ")
    # The hint of a finished or stopped run is a command, to chat with it or to continue it.
    is_wanted = state.is_over and state.state not in ("finished", "stopped")
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
        changes=tuple(_option_changes(before.values(), values)) if before is not None else (),
    )


def _option_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[OptionChange]:
    from core.config.compare import differences

    if not before or not after:
        return []
    return [
        OptionChange(name, shown_value(name, value), shown_value(name, after.get(name)))
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
    # A full path has no room; its last part identifies it.
    return Path(value).name or value if isinstance(value, str) and value.startswith("/") else shown(value).strip('"')

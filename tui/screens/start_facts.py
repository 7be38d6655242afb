"""Facts of a run before it starts, and where they are found: its rows, its memory and its time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from core.analysis.division import HELD_OUT, held_out_count
from core.analysis.result import Analysis
from core.config.schema import Config
from core.data.exclusion import EXCLUDED
from core.errors import UserError
from core.presets.provenance import Provenance
from core.runs.record.store import Run, complete_checkpoints
from tui.datasets.marks import OF_THE_WHOLE

if TYPE_CHECKING:
    from core.analysis.job import AnalysisJob
    from core.config.facts import Unkept
    from core.memory.planner import Source
    from core.runs.outlook.estimate import Estimate, PaceBook


@dataclass(frozen=True)
class StartRows:
    """Rows of a run, as far as they are known.

    Args:
        used: Rows trained on.
        held_out: Rows measured on.
        dropped: Rows that are not used, by reason.
        look: Used rows that are worth a look.
        doubts: Problems of the data as a whole, as sentences.
        is_exact: True once all rows have been analyzed.
        progress: The progress of the analysis, or the reason why it failed.
        refusal: The reason why a run cannot read the rows either; empty for none.
    """

    used: int | None = None
    held_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    look: int = 0
    doubts: tuple[str, ...] = ()
    is_exact: bool = False
    progress: str = ""
    refusal: str = ""

    @property
    def ordered(self) -> int | None:
        """The rows by which steps are counted: those used, and the gaps of ``data.exclude``."""
        return None if self.used is None else self.used + self.dropped.get(EXCLUDED, 0)

    @classmethod
    def counted(cls, count: int | None, config: Config, progress: str = "") -> StartRows:
        """Rows known by their number alone."""
        if count is None:
            return cls(progress=progress)
        kept_out = held_out_count(count, config.data.eval_share)
        return cls(count - kept_out, kept_out, progress=progress)

    @classmethod
    def analyzed(cls, analysis: Analysis) -> StartRows:
        """Rows as found by a complete analysis."""
        dropped = {reason: count for reason, count in analysis.dropped.items() if reason != HELD_OUT}
        return cls(
            analysis.used,
            analysis.dropped.get(HELD_OUT, 0) + analysis.eval_rows,
            dropped,
            sum(
                problem.count
                for problem in analysis.problems
                if problem.kind.level == "warn" and problem.code not in OF_THE_WHOLE
            ),
            tuple(problem.kind.title for problem in analysis.problems if problem.code in OF_THE_WHOLE),
            is_exact=True,
        )


@dataclass(frozen=True)
class SeenRows:
    """Rows of a run as known to another part of the app.

    Args:
        count: The number of rows; None while they are counted.
        analysis: The complete analysis; None while it is running, or if it failed.
        progress: Its progress, or the reason why it failed.
        is_over: True if the analysis has ended.
        refusal: The reason why a run cannot read the rows either; empty for none.
    """

    count: int | None
    analysis: Analysis | None
    progress: str = ""
    is_over: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class StartPlan:
    """Expected memory and time of a run.

    Args:
        parameters: Parameters of the base model; None if unknown.
        needed: Bytes of memory.
        free: Free bytes; None if unknown.
        fits: True if the memory suffices; None if unknown.
        advice: The best change that would make it fit; empty if it fits.
        estimate: Duration and energy of the run; None if unknown.
        problem: The reason why nothing is known.
        seconds_left: The time left of a continued run; None if unknown.
        unmet: The deadline or energy limit that cannot be met.
        is_rough: The memory is a rough bound, because the model has not been measured yet.
        is_guess: It is for rows of ``train.max_length``, because their lengths are not known.
    """

    parameters: int | None = None
    needed: int = 0
    free: int | None = None
    fits: bool | None = None
    advice: str = ""
    estimate: Estimate | None = None
    problem: str = ""
    seconds_left: float | None = None
    unmet: tuple[Unkept, ...] = ()
    is_rough: bool = False
    is_guess: bool = False

    @property
    def seconds(self) -> float | None:
        """Duration of the run, or of the rest of a continued one; None if unknown."""
        if self.seconds_left is not None:
            return self.seconds_left
        return self.estimate.seconds if self.estimate is not None else None


@dataclass(frozen=True)
class Continuation:
    """Rest of a continued run.

    Args:
        run: The run.
        state: Its state, ``stopped`` or another end.
        step: The step of the checkpoint to continue from.
        saved: Time of that checkpoint, in Unix seconds; None if unknown.
        total: Steps of the whole run; 0 if unknown.
        done: The last finished step; steps after the checkpoint are repeated.
    """

    run: Run
    state: str
    step: int
    saved: float | None
    total: int
    done: int

    @property
    def left(self) -> int | None:
        """Number of steps left; None if unknown."""
        return max(self.total - self.step, 0) if self.total else None


@dataclass(frozen=True)
class Start:
    """A run about to start.

    Args:
        config: The checked configuration.
        name: Its subject, the end of the run's id.
        values: The sources of its values; None for no such line.
        is_choosing: A preset is being chosen for it, and a start waits for that.
        former: The name of the previous configuration, which a key brings back; empty for none.
        notes: Remarks that do not depend on the facts found in the background.
        continuation: The continued run; None for a new run.
        has_form: The configuration is open in the Config pane and can be changed there.
        title: The title of the card.
    """

    config: Config
    name: str
    values: Provenance | None = None
    is_choosing: bool = False
    former: str = ""
    notes: tuple[str, ...] = ()
    continuation: Continuation | None = None
    has_form: bool = False
    title: str = "Start a run"

    @property
    def train(self) -> list[str]:
        """The entries of ``data.train``."""
        train = self.config.data.train
        return [train] if isinstance(train, str) else list(train)


@dataclass(frozen=True)
class Found:
    """Facts found so far.

    Args:
        rows: The rows.
        plan: Memory and time; None while they are being estimated.
        warnings: Warnings of the rules between options.
        flaw: The reason why the files of the base model would be refused; empty for none.
    """

    rows: StartRows = field(default_factory=StartRows)
    plan: StartPlan | None = None
    warnings: tuple[str, ...] = ()
    flaw: str = ""


def find_plan(
    config: Config, analysis: Analysis | None, used: int | None, paces: PaceBook, source: Source = "measured"
) -> StartPlan:
    """Plan memory and time; asks the driver and reads headers, so call it from a thread.

    Args:
        config: The checked configuration.
        analysis: The complete analysis of the rows, if there is one.
        used: The number of training rows; None if unknown.
        paces: Earlier runs.
        source: As for :func:`core.memory.planner.make_plan`.
    """
    from core.models.find import STARTER_NAME, find_model
    from core.runs.outlook.forecast import forecast_here, likely, unmet

    if find_model(config.model.base) is None:
        first = "not known: the model is made ready first" if config.model.base == STARTER_NAME else ""
        return StartPlan(problem=first or "not known: the model is not on this machine")
    try:
        found = forecast_here(config, analysis.lengths if analysis is not None else None, used, paces, source)
    except UserError as error:
        return StartPlan(problem=error.message)
    plan, guess = found.plan, likely(config, found, used)
    advice = ""
    if found.fits is False and not found.is_rough:
        first_advice = f" {found.advice[0].text}" if found.advice else ""
        advice = f"The memory does not suffice.{first_advice}"
    elif plan.disk_fits is False:
        advice = "The disk has not enough room for the checkpoints."
    return StartPlan(
        parameters=plan.parameters,
        needed=plan.needed_bytes,
        free=plan.limit_bytes,
        fits=found.fits,
        advice=advice,
        estimate=guess,
        unmet=tuple(unmet(config, guess, time.time())),
        is_rough=found.is_rough,
        is_guess=found.rows is None,
    )


def plan_of(start: Start, analysis: Analysis | None, used: int | None, measures: bool) -> StartPlan:
    """The plan of a new run, or of the rest of one at its own pace; blocks."""
    from core.runs.outlook.estimate import PaceBook

    plan = find_plan(start.config, analysis, used, PaceBook(), "measured" if measures else "known")
    if start.continuation is None:
        return plan
    return replace(plan, seconds_left=_find_rest(start.continuation), unmet=())


def find_flaw(config: Config) -> str:
    """The reason why the files of the base model would be refused; empty for none, or if it is no local directory.

    Headers are read by a helper process, so call it from a thread.
    """
    from core.models.find import find_model
    from core.models.sandboxed import check_model_directory
    from core.runs.catalog.trained import check_beginning

    directory = find_model(config.model.base)
    if directory is None or not directory.is_dir():
        return ""
    try:
        check_beginning(config)
        check_model_directory(directory)
    except UserError as error:
        # The name is shorter than the path.
        return str(error).replace(str(directory), directory.name)
    return ""


def find_warnings(config: Config, used: int | None) -> tuple[str, ...]:
    """Warnings of the rules between options; asks for card and disk, so call it from a thread."""
    from core.commands.configuration import gather_facts
    from core.config.rules.check import check_rules

    facts = replace(gather_facts(config), rows=used)
    return tuple(remark.sentence for remark in check_rules(config, facts) if remark.level == "warning")


def analysis_job(config: Config) -> AnalysisJob:
    """Job that analyzes all rows of a configuration, with tokens if its model is on this machine."""
    from core.analysis import job
    from core.analysis.result import request_for
    from core.analysis.row_samples import tokenizer_directory
    from core.template.builtin import template_source

    model = template = None
    # Without tokenizer or template the rows are analyzed without tokens; the run reports the error.
    with suppress(UserError):
        template = template_source(config.template.file, config.template.name)
        model = str(tokenizer_directory(config.model.base))
    return job.analysis_job(request_for(config, model=model, template=template))


def find_continuation(run: Run) -> Continuation:
    """The rest of a run to continue.

    Raises:
        UserError: If it cannot be continued.
    """
    from core.launch.launcher import refuse_continuation

    state = run.state()
    refuse_continuation(run, state)
    checkpoint = complete_checkpoints(run)[-1]
    step = int(checkpoint.name.rpartition("-")[2])
    saved = None
    with suppress(OSError):
        saved = (checkpoint / "manifest.json").stat().st_mtime
    return Continuation(run, state.state, step, saved, state.total_steps, max(state.step, step))


def _find_rest(goes_on: Continuation) -> float | None:
    """Seconds left of a continued run at its own pace; None if unknown. Reads its events, so call it from a thread."""
    from core.runs.outlook.estimate import LONGEST_RECORD
    from core.runs.outlook.time_left import Schedule, estimate
    from core.runs.record.history import read_history

    with suppress(OSError):
        if goes_on.run.events_path.stat().st_size <= LONGEST_RECORD:
            now, timings = time.time(), read_history(goes_on.run).timings
            timings.step, timings.anchor = goes_on.step, now
            left = estimate(timings, Schedule.of(goes_on.run.values()), goes_on.total, now)
            return left.seconds if left is not None else None
    return None

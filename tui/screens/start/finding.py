"""Slow findings about a run before it starts: memory, time, warnings, and where a continued run goes on."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.config.schema import Config
from core.errors import UserError
from core.runs.record.store import Run, complete_checkpoints
from tui.screens.start.summary import Continuation, StartPlan

if TYPE_CHECKING:
    from core.analysis.job import AnalysisJob
    from core.analysis.result import Analysis
    from core.memory.planner import Source
    from core.runs.outlook.estimate import PaceBook


def find_plan(
    config: Config, analysis: Analysis | None, used: int | None, paces: PaceBook, source: Source = "measured"
) -> StartPlan:
    """The memory plan and the estimates; asks the driver and reads headers, so call it from a thread.

    Args:
        config: The checked configuration.
        analysis: The analysis of all rows; None where there is none (yet).
        used: The number of rows trained on; None where unknown.
        paces: Earlier runs.
        source: As for :func:`core.memory.planner.make_plan`.
    """
    from core.config.derived import step_count
    from core.models.find import STARTER_NAME, find_model
    from core.runs.outlook.estimate import cut, tell_early_end
    from core.runs.outlook.forecast import forecast_here, rough_seconds, unmet

    if find_model(config.model.base) is None:
        first = "not known: the model is made ready first" if config.model.base == STARTER_NAME else ""
        return StartPlan(problem=first or "not known: the model is not on this machine")
    try:
        found = forecast_here(config, analysis.lengths if analysis is not None else None, used, paces, source)
    except UserError as error:
        return StartPlan(problem=error.message)
    plan, guess, rows, steps = found.plan, found.estimate, found.rows, step_count(config, used)
    if guess is not None and guess.by == "plan" and rows is None:
        guess = None  # it would be many times too long until the rows are measured
    seconds, end = (guess.seconds, guess.early_end) if guess is not None else (None, None)
    if seconds is None and steps is not None and rows is not None and rows.tokens:
        rough = rough_seconds(config, plan, steps, rows.tokens / max(rows.count, 1))
        seconds, _, end = cut(config, steps, rough, None)
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
        steps=steps,
        seconds=seconds,
        watt_hours=guess.watt_hours if guess is not None else None,
        pace_of=guess.run if guess is not None else "",
        is_planned=guess is not None and guess.by == "plan",
        unmet=tuple(unmet(config, guess, time.time())),
        early_end=tell_early_end(end) if end is not None else "",
        is_rough=found.is_rough,
    )


def find_flaw(config: Config) -> str:
    """Why the files of the base model would be refused; empty where they would not, or it is not a directory here.

    Headers are read by a helper process, so call it from a thread.
    """
    from core.models.find import find_model
    from core.models.sandboxed import check_model_directory

    directory = find_model(config.model.base)
    if directory is None or not directory.is_dir():
        return ""
    try:
        check_model_directory(directory)
    except UserError as error:
        # Named as in the configuration, in fewer words than its path.
        return str(error).replace(str(directory), directory.name)
    return ""


def find_warnings(config: Config, used: int | None) -> tuple[str, ...]:
    """Warnings of the rules between options; asks for the card and the disk, so call it from a thread."""
    from core.commands.configuration import gather_facts
    from core.config.rules.check import check_rules

    facts = replace(gather_facts(config), rows=used)
    return tuple(remark.sentence for remark in check_rules(config, facts) if remark.level == "warning")


def analysis_job(config: Config) -> AnalysisJob:
    """The analysis of every row of a configuration, with tokens where its model is on this machine."""
    from core.analysis import job
    from core.analysis.result import request_for
    from core.analysis.row_tokens import tokenizer_directory
    from core.template.builtin import template_source

    model = template = None
    # Without tokenizer or template rows are looked at as they are; the run reports what is wrong with those.
    with suppress(UserError):
        template = template_source(config.template.file, config.template.name)
        model = str(tokenizer_directory(config.model.base))
    return job.analysis_job(request_for(config, model=model, template=template))


def check_continuable(run: Run) -> Path:
    """The checkpoint that a run goes on from.

    Raises:
        UserError: If it cannot be continued.
    """
    from core.launch.launcher import refuse_continuation

    refuse_continuation(run, run.state())
    return complete_checkpoints(run)[-1]


def find_continuation(run: Run, checkpoint: Path) -> Continuation:
    """The rest of a run."""
    state = run.state()
    step = int(checkpoint.name.rpartition("-")[2])
    saved = None
    with suppress(OSError):
        saved = (checkpoint / "manifest.json").stat().st_mtime
    return Continuation(run.id, state.state, step, saved, state.total_steps, max(state.step, step))


def find_pace(run: Run) -> float | None:
    """The seconds that a step of a run took at last; None where unknown. Reads its events: call it from a thread."""
    from core.runs.catalog.rows import read_totals
    from core.runs.outlook.estimate import LONGEST_RECORD

    with suppress(OSError):
        if run.events_path.stat().st_size <= LONGEST_RECORD:
            steps = read_totals(run.events_path).steps
            return steps.seconds[-1] / steps.count if steps.seconds else None
    return None

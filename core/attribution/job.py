"""Attribution of an answer to training rows, and the index that makes it exact, as jobs in a process of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from core.attribution.result import Attribution, AttributionRequest
from core.audit.job import replay_checkpoint
from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.jobs.job import Job, JobProgress
from core.launch.launcher import worker_environment
from core.runs.catalog.trained import checkpoint_steps, middle_step, result_step, taken_step
from core.runs.record.store import Run, find_run, refuse_live, start_again

PROGRAM, INDEX_PROGRAM = "core.worker.job attribute", "core.worker.job attribution-index"
#: Sentence under every list of rows, above one whose answer is the base's too, and in place of an empty one.
PROOF = "These rows pull toward this answer. Only training again without them shows whether it depends on them."
SAME = "The base model gives the same answer: training need not be behind it."
NO_ROWS = "No row pulls toward this answer."

AttributionJob = Job[JobProgress, Attribution]


@dataclass(frozen=True)
class IndexResult:
    """An index of a run's rows."""

    steps: tuple[int, ...]
    """Steps of the checkpoints with an index."""
    rows: int
    """Rows of the data files in it."""
    bytes: int
    """Its size on the disk."""
    seconds: float
    """Time to make it."""
    made: int
    """Rows whose gradients were computed now, over all checkpoints; the others were there."""
    note: str = ""
    """Why it lacks a checkpoint of the middle of the run, in sentences; empty if it has one."""


IndexJob = Job[JobProgress, IndexResult]


def attribution_job(request: AttributionRequest) -> AttributionJob:
    """Find the rows behind an answer.

    Where the run has an index, all rows are compared; otherwise hidden states choose candidates, whose gradients are
    computed now. An empty ``answer`` of the request is generated first.

    Args:
        request: The question. Its ``run`` is named as for :func:`core.runs.record.store.find_run`.

    Raises:
        UserError: If there is no such run or checkpoint, or its answers cannot be traced to rows; from :meth:`Job.run`
            also if rows or base have changed, or memory is short.
    """
    run = find_run(request.run)
    refuse_run(run)
    if request.wanted and request.wanted.strip() == request.answer.strip():
        raise UserError("The wanted answer is the answer that was given.", "Name another, or leave it out.")
    values = {"request": replace(request, run=str(run.path)).to_dict(), "steps": chosen_steps(run, request.step)}

    def work(job: AttributionJob) -> Attribution:
        return Attribution.from_dict(
            job.call(PROGRAM, values, job.report, beats=True, environment=worker_environment())
        )

    return Job("the attribution", work, "Close other programs that use the device.")


def index_job(run: Run, step: int | None = None) -> IndexJob:
    """Make or complete the index of a run; rows that an earlier attempt has finished are kept. If the run has kept no
    checkpoint of its middle, its training is executed again up to there, which gives it one.

    Args:
        run: The run, which is over.
        step: The step whose answers are traced; None for the result.

    Raises:
        UserError: If there is no such checkpoint, or its answers cannot be traced to rows; from :meth:`Job.run` also if
            rows or base have changed, or memory or disk are short.
    """
    refuse_run(run)
    chosen_steps(run, step)

    def work(job: IndexJob) -> IndexResult:
        note = _make_middle(run, chosen_steps(run, step), job)
        values = {"run": str(run.path), "directory": str(run.path), "steps": chosen_steps(run, step)}
        found: dict[str, Any] = job.call(
            INDEX_PROGRAM, values, job.report, beats=True, environment=worker_environment()
        )
        return IndexResult(**{**found, "steps": tuple(found["steps"]), "note": note})

    return Job("the index", work, "Close other programs that use the device; finished rows are kept.")


def _make_middle(run: Run, steps: list[int], job: IndexJob) -> str:
    """Make the checkpoint of the middle of a run if none of the middle third is kept.

    Args:
        run: The run.
        steps: The :func:`chosen_steps` of now.
        job: The job that it is a part of.

    Returns:
        Why there is none, in sentences; empty if there is one.
    """
    last = steps[-1]
    third = range(-(-last // 3), 2 * last // 3 + 1)
    if steps[0] in third or not third:
        return ""
    try:
        replay_checkpoint(run, last // 2, third, job)
    except UserError as error:
        return f"No checkpoint of the middle of the run is compared. {error.message}"
    return ""


def refuse_run(run: Run) -> None:
    """Refuse a run whose answers cannot be traced to rows.

    Raises:
        UserError: If it is live, has no checkpoint, or :func:`refuse` refuses its configuration.
    """
    refuse_live(run, "its answers can be traced to rows when it is over")
    refuse(run.config())
    if not checkpoint_steps(run):
        raise UserError(
            f"Run {run.id} has no checkpoint, whose optimizer states the comparison of rows needs.",
            f"To have one, {start_again(run)}.",
        )


def refuse(config: Config) -> None:
    """Refuse a configuration whose answers cannot be traced to rows exactly.

    Raises:
        UserError: If so, with the reason.
    """
    method, objective = config.method, config.train.objective
    reason = ""
    if method.name in WEIGHT_METHODS:
        reason = f"method.name = {method.name} trains the model's own weights, and row gradients are those of adapters"
    elif method.dora:
        reason = "the magnitudes of DoRA have gradients of their own, which are not computed row by row"
    elif method.init == "pissa":
        reason = "PiSSA trains beside a second, frozen adapter, and row gradients are computed for a single one"
    elif method.train_for is not None:
        reason = f"the run trains the weights of a {method.train_for} file, whose rounding has no gradient"
    elif objective != "sft":
        reason = f"a row of {objective} is compared with a reference, and row gradients are those of the plain loss"
    if reason:
        raise UserError(f"An answer of this run cannot be traced to rows: {reason}.", "Ask a LoRA run trained by sft.")


def chosen_steps(run: Run, step: int | None = None) -> list[int]:
    """Steps of the checkpoints that are compared, ascending: that of the answer, and the one nearest to the middle
    before it, where rows are not learned by heart yet.

    Args:
        run: The run, which has a checkpoint.
        step: The step whose model answered; None for the result.

    Raises:
        UserError: If the checkpoint of ``step`` is not kept.
    """
    there = checkpoint_steps(run)
    if step is not None and step not in there:
        raise UserError(
            f"The checkpoint of step {step} is not kept in run {run.id}, so its answers cannot be traced to rows.",
            f"Ask one of steps {', '.join(map(str, there))}.",
        )
    end = step or taken_step(run) or result_step(run)
    last = end if end in there else there[-1]
    before = [each for each in there if each < last]
    return [middle_step(before, last), last] if before else [last]

"""Audit as a job: the chain is checked here, and spans are executed by a process that leaves no files behind, except a
checkpoint that is to be made again."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core import paths
from core.audit.chain_check import Sealed, check_chain, compare_head, read_sealed, sealed_config
from core.audit.result import Audit, ChainResult, Difference, SpanResult
from core.audit.spans import Span, choose, join, path_to, recorded_threads, savable_steps, span_to, spans_of, up_to
from core.config.schema import Config
from core.directories import disk_error, remove_tree, require_space
from core.errors import UserError
from core.jobs.job import Job, JobProgress
from core.launch.launcher import worker_environment
from core.runs.catalog.removal import directory_size
from core.runs.catalog.trained import matches_manifest, read_manifest, result_step
from core.runs.record.state import EventTail
from core.runs.record.store import Run, complete_checkpoints, refuse_live, refuse_moved_checkpoints

PROGRAM = "core.worker.job audit"
#: Shell script that waits for the end of its input, then removes a directory; it retries, as dying processes of the
#: audit may still write there.
_JANITOR = 'cat; for _ in 0 1 2 3 4 5 6 7 8 9; do rm -rf -- "$1" && exit; sleep 1; done'
_WORK = "work-"
_FAST = (
    "The run is fast, not strict, on its card: what is computed again is equal to rounding, and not bit for bit. A new "
    "run with train.deterministic = strict can be executed again."
)
_CARDS = (
    "The run was computed by several processes on cards, whose sums are not known to be made in the same order twice."
)
_ONLY_THE_CHAIN = "Only the chain is checked."
#: Most processes that are started to execute a run again.
_MOST_PROCESSES = 64


@dataclass(frozen=True)
class _Plan:
    """Intervals to execute again."""

    spans: list[Span]
    starts: list[dict[str, Any]]
    """Body of the start of each span in the chain; empty where it is unknown."""
    config: Config
    sealed: Sealed
    manifests: dict[int, dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    last: int = 0
    """The step of the result, or of the last checkpoint."""


AuditJob = Job[JobProgress, Audit]


def audit_job(run: Run, *, spans: int, seed: int, whole: bool = False, head: str | None = None) -> AuditJob:
    """An audit: the chain is checked, and spans of the training are executed again on copies.

    Args:
        run: The run, which is over; it is only read.
        spans: Number of intervals between checkpoints to execute again.
        seed: Seed of their choice.
        whole: Execute the whole training instead, from the untouched base on.
        head: An earlier head of the chain, or its beginning, that the user has written down; None without one.
    """

    def work(job: AuditJob) -> Audit:
        began = time.monotonic()
        # Its record and checkpoints change, and it has the device.
        refuse_live(run, "only a run that is over can be verified")
        job.report(JobProgress("checking the chain"))
        sealed = read_sealed(run)
        chain = check_chain(run, sealed)
        if head is not None:
            chain = compare_head(chain, sealed, head)
        plan = _plan(run, None if whole else spans, seed, sealed, chain)
        answer: dict[str, Any] = {"inputs": [], "spans": [], "notes": []}
        if plan.manifests or sealed.starts:
            with _work_directory() as directory:
                answer = _execute(run, plan, directory, job)
        results = TypeAdapter(tuple[SpanResult, ...]).validate_python(answer["spans"])
        gap = _gap(results, plan.last) if whole else ""
        return Audit(
            run=run.id,
            chain=chain,
            inputs=TypeAdapter(tuple[Difference, ...]).validate_python(answer["inputs"]),
            spans=results,
            notes=(*plan.notes, *map(str, answer["notes"]), *([gap] if gap else [])),
            seed=seed,
            seconds=round(time.monotonic() - began, 3),
            complete=not gap,
        )

    return Job("the audit", work, "Please report it.")


def _plan(run: Run, count: int | None, seed: int, sealed: Sealed, chain: ChainResult) -> _Plan:
    """The intervals to execute again: ``count`` of them, or all if it is None."""
    notes: list[str] = []
    config = sealed_config(sealed) or run.config()
    there, manifests = _manifests(run, sealed)
    # Checkpoints that cannot be resumed.
    damaged = {found.step for found in chain.differences if (found.file or "").startswith("checkpoints/")}
    events = EventTail(run.events_path).read_all()
    recorded = spans_of(events)
    spans = [span for span in recorded if span.end in manifests]
    last = max([result_step(run) or 0, *(span.end for span in recorded)])
    if not spans:
        notes.append("The run has no checkpoint that its training could be compared with.")
    for span in spans:
        if span.obstacle:
            notes.append(f"Steps {span.begin + 1} to {span.end} cannot be executed again: {span.obstacle}.")
    obstacle = _obstacle(recorded, manifests)
    if obstacle and spans:
        notes.append(f"{obstacle} {_ONLY_THE_CHAIN}")
        spans = []
    spans = join(spans) if count is None else spans
    usable = [span for span in spans if span.begin == 0 or span.begin in there - damaged]
    if spans and len(usable) < len(spans):
        notes.append(
            f"{len(usable)} of {len(spans)} intervals can be executed again: checkpoint.keep has removed the "
            "checkpoints that the others begin with. With --whole, all steps are."
            if not damaged
            else f"{len(usable)} of {len(spans)} intervals have a whole checkpoint to begin with."
        )
    # Executing a span whose end is damaged shows the changes in it.
    first = [span for span in usable if span.end in damaged and not span.obstacle]
    chosen = choose(usable, there - damaged, len(usable) if count is None else count, seed)
    chosen = sorted({span.end: span for span in [*chosen, *first]}.values(), key=lambda span: span.end)
    starts = [sealed.start_of(span.end) for span in chosen]
    return _Plan(chosen, starts, config, sealed, manifests, notes, last)


def _manifests(run: Run, sealed: Sealed) -> tuple[set[int], dict[int, dict[str, Any]]]:
    """Steps of the present checkpoints, and the manifests of all checkpoints, by step."""
    there = {int(path.name.removeprefix("step-")): read_manifest(path) for path in complete_checkpoints(run)}
    return set(there), {step: manifest for step, manifest in there.items() if manifest} | sealed.manifests


def _execute(run: Run, plan: _Plan, work: Path, job: Job[JobProgress, Any], *, keeps: bool = False) -> dict[str, Any]:
    """Have a process execute the spans of a plan.

    Args:
        run: The run.
        plan: The plan.
        work: Directory for copies.
        job: The job.
        keeps: Whether the run gets the checkpoint at the end of each span that comes out equal.
    """
    known = plan.sealed.starts
    request = {
        "directory": str(work),
        "run": str(run.path),
        "config": plan.config.model_dump(mode="json", exclude_defaults=True),
        "start": known[-1].body if known else {},
        "manifest": next(reversed(plan.manifests.values()), {}),
        "manifests": plan.manifests,
        "spans": [span_to(span) | {"start": start} for span, start in zip(plan.spans, plan.starts, strict=True)],
        "keeps": keeps,
    }
    environment = worker_environment()
    if (threads := next(filter(None, map(recorded_threads, plan.starts)), None)) is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return job.call(
        PROGRAM, request, job.report, title="the replay" if keeps else "", beats=keeps, environment=environment
    )


def replay_checkpoint(run: Run, near: int, steps: range, job: Job[JobProgress, Any]) -> None:
    """Make a checkpoint that a run has not kept: its training is executed again up to there, and the run gets the
    checkpoint if every step, and the checkpoint itself where it was recorded, comes out equal.

    Args:
        run: The run, which is over.
        near: The wanted step.
        steps: Steps that will do; a recorded one is preferred to one nearer to ``near``.
        job: The job that it is a part of.

    Raises:
        UserError: If the run cannot have such a checkpoint.
    """
    refuse_moved_checkpoints(run)
    sealed = read_sealed(run)
    config = sealed_config(sealed) or run.config()
    _, manifests = _manifests(run, sealed)
    spans = spans_of(EventTail(run.events_path).read_all())
    if obstacle := _obstacle(spans, manifests):
        raise UserError(obstacle)
    starts = {int(path.name.removeprefix("step-")) for path in complete_checkpoints(run) if matches_manifest(path, "")}
    ends = {span.end for span in spans if span.end in manifests}
    candidates = [step for step in {*ends, *savable_steps(spans)} if step in steps]
    reason = "Its record does not lead there from a checkpoint or from the beginning."
    for step in sorted(candidates, key=lambda step: (step not in ends, abs(step - near))):
        path = path_to(spans, step, starts)
        obstacle = next((span.obstacle for span in path if span.obstacle), "")
        if path and not obstacle:
            break
        reason = f"It cannot be executed again: {obstacle}." if obstacle else reason
    else:
        raise UserError(reason)
    size = max(map(directory_size, complete_checkpoints(run)), default=0)
    require_space(run.checkpoints_path, 2 * size, "the checkpoint")
    begun = [sealed.start_of(span.end) for span in path]
    plan = _Plan([*path[:-1], up_to(path[-1], step)], begun, config, sealed, manifests)
    try:
        with _work_directory() as work:
            answer = _execute(run, plan, work, job, keeps=True)
    finally:
        for span in path[:-1]:
            remove_tree(run.checkpoints_path / f"step-{span.end:08d}")
    for result in TypeAdapter(list[SpanResult]).validate_python(answer["spans"]):
        if result.outcome != "equal":
            came_out = [f"Executed again, {difference.what}" for difference in result.differences]
            raise UserError(result.reason or came_out[0])


def _obstacle(spans: Sequence[Span], manifests: Mapping[int, Mapping[str, Any]]) -> str:
    """Why no part of a run can be executed again bit for bit; empty if it can."""
    if any(span.team.is_several and span.team.has_cards for span in spans):
        return _CARDS
    most = max((span.team.count for span in spans), default=1)
    if most > _MOST_PROCESSES:
        return (
            f"The run was computed by {most} processes, and {_MOST_PROCESSES} at most are started to execute it again."
        )
    if any(manifest.get("deterministic") == "fast" for manifest in manifests.values()):
        return _FAST
    return ""


def _gap(spans: Sequence[SpanResult], last: int) -> str:
    """A note that a run was not executed again up to its last step; empty if it was."""
    reached = 0
    for span in spans:
        if span.begin != reached or span.outcome == "skipped":
            break
        reached = span.end
    if reached >= last:
        return ""
    return f"Not all of the run was executed again: that its steps after {reached} follow from the base is not proven."


@contextlib.contextmanager
def _work_directory() -> Iterator[Path]:
    """A private directory for copies, removed even if this process is killed.

    Raises:
        UserError: If it cannot be made.
    """
    parent = paths.make_private_dir(paths.audits_dir())
    try:
        work = Path(tempfile.mkdtemp(prefix=_WORK, dir=parent))
    except OSError as error:
        raise disk_error(parent, error) from error
    # Its standard input is closed when this process ends for any reason.
    janitor = subprocess.Popen(
        ["/bin/sh", "-c", _JANITOR, "sh", str(work)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        janitor.communicate()

"""Replay of a run, as a job."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.audit.result import Difference, SpanResult
from core.audit.spans import recorded_threads, span_from
from core.config.schema import Config
from core.directories import Progress
from core.errors import UserError
from core.jobs.process import Answers
from core.runs.record.store import Run
from core.worker.audit.processes import work_together
from core.worker.distributed.rendezvous import Meeting, file_meeting
from core.worker.process import environment

if TYPE_CHECKING:
    from core.worker.distributed.ranks import Ranks


def audit(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Compare base and files, and replay the spans.

    Each span is replayed by new processes, as many as trained it, forked from this one after the libraries are
    imported: in a shared process a span's settings would leak into the next.

    Args:
        job: ``run``; a ``directory`` for copies; the ``spans`` of :func:`core.audit.spans.span_to`, each with the body
            of its ``start`` link; the ``manifests`` by step; the newest ``start`` and ``manifest``; ``config``.
        answers: Receives the progress.

    Returns:
        ``inputs``, ``spans`` and ``notes``.
    """
    config = Config.model_validate(job["config"])
    if config.hardware.device != "cpu":
        environment.choose_gpu(config.hardware.gpu)
    from core.worker.libraries import import_libraries

    import_libraries()
    from core.worker.audit.inputs import compare_inputs

    found = compare_inputs(config, job["start"], job["manifest"], answers.progress)
    obstacle = found.obstacle
    spans: list[dict[str, Any]] = []
    for place, span in enumerate(job["spans"]):
        if obstacle:
            spans.append(_skipped(span, obstacle))
            continue
        where = (
            f"training to step {span['end']} again" if job["keeps"] else f"interval {place + 1} of {len(job['spans'])}"
        )
        told = _executed(job, span, config, partial(_tell, answers, where))
        if rows := told.pop("rows", ""):
            found.differences.append(Difference(what=rows))
            obstacle = "The rows have changed."
        spans.append(_skipped(span, obstacle) if rows else told)
    return {
        "inputs": [asdict(difference) for difference in found.differences],
        "spans": spans,
        "notes": found.notes,
    }


def _tell(answers: Answers, where: str, activity: str, done: int | None, total: int | None) -> None:
    answers.progress(f"{where}: {activity}", done, total)


def _skipped(span: dict[str, Any], reason: str) -> dict[str, Any]:
    return asdict(SpanResult(begin=span["begin"], end=span["end"], outcome="skipped", reason=reason))


def _executed(job: dict[str, Any], span: dict[str, Any], config: Config, progress: Progress) -> dict[str, Any]:
    """Replay a span in new processes, as many as trained it; returns its result."""
    work = Path(job["directory"]) / f"{span['begin']}-{span['end']}"
    work.mkdir(mode=0o700)

    def heard(message: dict[str, Any]) -> None:
        if "progress" in message:
            progress(*message["progress"].values())

    try:
        count = int(span["team"]["count"])
        result = work_together(count, lambda rank, told: _execute(job, span, config, work, rank, told), heard)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _skipped(span, result) if isinstance(result, str) else result


def _execute(job: dict[str, Any], span: dict[str, Any], config: Config, work: Path, rank: int, told: Answers) -> None:
    """Replay a span with the other processes of the span; the first process sends the result."""
    from core.worker.audit.replay import ChangedRowsError, Replay
    from core.worker.process.openmp import SpinControl, renew_thread_pool

    start = span["start"]
    renew_thread_pool(recorded_threads(start))
    SpinControl().start()
    manifests = {int(step): manifest for step, manifest in job["manifests"].items()}
    ranks = _meet(rank, int(span["team"]["count"]), work)
    progress: Progress = told.progress if ranks.is_first else lambda *_: None
    replay = Replay(
        Run(Path(job["run"])), config, span_from(span), work, manifests, start, progress, ranks, job["keeps"]
    )
    try:
        if ranks.is_first:
            told.send(asdict(replay.execute()))
        else:
            replay.follow()
    except ChangedRowsError as error:
        told.send({"rows": str(error)})
    except UserError as error:
        told.send({"error": str(error)})
        raise


def _meet(rank: int, count: int, work: Path) -> Ranks:
    """Meet the other processes of a span over a file, like those of a run on one machine."""
    from core.worker.audit.replay import PATIENCE
    from core.worker.distributed.ranks import Ranks, join

    if count == 1:
        return Ranks.single()
    meeting = Meeting(rank, count, rank, file_meeting(work / "meeting"))
    meeting.keep_inside(os.environ)
    return join(meeting, PATIENCE, cuda=False)

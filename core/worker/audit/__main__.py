"""The process of an audit: ``python -m core.worker.audit``.

Its job has the run (``run``), a ``directory`` for copies, the ``spans`` that are executed again (as
:mod:`core.audit.request` has them, each with the body of its ``start`` link), the ``manifests`` by step, the newest
``start`` and ``manifest``, and the ``config``. It answers with ``inputs``, ``spans`` and ``notes``. Each span is
executed by a process of its own, forked from this one when the libraries are imported, as the first to train would
leave its settings to the next.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from core.audit.request import span_from
from core.audit.result import Difference
from core.config.schema import Config
from core.helper import describe_end
from core.runs.store import Run
from core.worker.process import environment
from core.worker.process.answers import Answers
from core.worker.process.job import run_job

Progress = Callable[[str, "int | None", "int | None"], None]


def audit(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Compare base and files, and execute the spans."""
    answers.progress("importing the libraries")
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
        told = _forked(job, span, config, answers, f"interval {place + 1} of {len(job['spans'])}")
        if rows := told.pop("rows", ""):
            found.differences.append(Difference(what=rows))
            obstacle = "The rows are others."
        spans.append(_skipped(span, obstacle) if rows else told)
    return {
        "inputs": [asdict(difference) for difference in found.differences],
        "spans": spans,
        "notes": found.notes,
    }


def _skipped(span: dict[str, Any], reason: str) -> dict[str, Any]:
    return {"from": span["begin"], "to": span["end"], "outcome": "skipped", "reason": reason}


def _forked(job: dict[str, Any], span: dict[str, Any], config: Config, answers: Answers, where: str) -> dict[str, Any]:
    """Execute a span in a process of its own; its result."""
    reading, writing = os.pipe()
    work = Path(job["directory"]) / f"{span['begin']}-{span['end']}"
    work.mkdir(mode=0o700)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _in_child(job, span, config, work, reading, writing)
    os.close(writing)
    result: dict[str, Any] | None = None
    with os.fdopen(reading, "rb") as told:
        for message in _messages(told):
            if "progress" in message:
                activity, done, total = message["progress"]
                answers.progress(f"{where}: {activity}", done, total)
            else:
                result = message
    _, status = os.waitpid(pid, 0)
    shutil.rmtree(work, ignore_errors=True)
    if result is None:
        return _skipped(span, f"The process that executed it {describe_end(os.waitstatus_to_exitcode(status))}.")
    return result


def _messages(told: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in told:
        if line.endswith(b"\n"):
            yield json.loads(line)


def _in_child(
    job: dict[str, Any], span: dict[str, Any], config: Config, work: Path, reading: int, writing: int
) -> None:
    """Execute a span, tell its result and leave."""
    code = 1
    try:
        os.close(reading)
        told = Answers(os.fdopen(writing, "wb"))
        told.send(_replay(job, span, config, work, lambda *what: told.send({"progress": what})))
        code = 0
    except BaseException:  # nothing of this process may go on as the one that it was forked from
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _replay(
    job: dict[str, Any], span: dict[str, Any], config: Config, work: Path, progress: Progress
) -> dict[str, Any]:
    from core.worker.audit.replay import ChangedRowsError, Replay
    from core.worker.process.openmp import SpinControl, renew_thread_pool

    renew_thread_pool()
    SpinControl().start()
    manifests = {int(step): manifest for step, manifest in job["manifests"].items()}
    replay = Replay(Run(Path(job["run"])), config, span_from(span), work, manifests, span["start"], progress)
    try:
        return replay.execute().to_dict()
    except ChangedRowsError as error:
        return {"rows": str(error)}


def main() -> int:
    """Do the job on standard input; returns the exit code."""
    return run_job(audit)


if __name__ == "__main__":
    sys.exit(main())

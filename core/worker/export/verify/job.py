"""Measurements for the verification of an export, as jobs.

A request has a ``task``:

``reference``
    ``run``, ``step``, ``directory``, ``rows``, ``plain_base``, ``as_file``: see
    :func:`core.worker.export.verify.reference.measure_reference`.
``gguf``, ``merged``, ``adapter``
    ``directory`` (of the measured answers), ``exported``, and ``base`` for an adapter: a GGUF file, or the name of the
    model, in 4 bits if ``quantized``, except for the layers of ``keep_16bit``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.jobs.process import Answers
from core.worker.process import environment


def measure(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Execute a job."""
    directory = Path(job["directory"])
    if job["task"] == "reference":
        return _reference(job, directory, answers)
    from core.worker.export.verify.store import Proof

    proof = Proof.read(directory)
    exported, base = Path(job["exported"]), job.get("base")
    if job["task"] == "gguf":
        from core.worker.export.verify.gguf import compare_gguf

        model, adapter = (exported, None) if base is None else (Path(base), exported)
        return compare_gguf(proof, model, adapter, answers.progress)
    from core.worker.export.verify.plain import compare_plain
    from core.worker.model.starter import resolve_base
    from core.worker.process.openmp import SpinControl

    SpinControl().start()
    if base is None:
        return compare_plain(proof, exported, None, answers.progress)
    place = resolve_base(base, answers.progress)
    quantized, keep = bool(job["quantized"]), [str(entry) for entry in job["keep_16bit"]]
    return compare_plain(proof, place, exported, answers.progress, quantized=quantized, keep_16bit=keep)


def _reference(job: dict[str, Any], directory: Path, answers: Answers) -> dict[str, Any]:
    from core.runs.catalog.trained import find_trained
    from core.runs.record.store import Run

    trained = find_trained(Run(Path(job["run"])), job["step"])
    if trained.config.hardware.device != "cpu":
        environment.choose_gpu(trained.config.hardware.gpu)
    from core.worker.export.verify.reference import measure_reference
    from core.worker.process.openmp import SpinControl

    SpinControl().start()
    proof = measure_reference(
        trained,
        directory,
        int(job["rows"]),
        answers.progress,
        plain_base=bool(job["plain_base"]),
        as_file=bool(job["as_file"]),
    )
    return {"rows": len(proof.rows), "places": proof.places}

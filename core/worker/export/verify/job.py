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

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from core.directories import Progress
from core.export.stages import LOADING_FILE
from core.jobs.process import Answers
from core.worker.export.llama.engine import GgufTemplate
from core.worker.export.llama.model import GgufModel
from core.worker.export.verify.compare import compare
from core.worker.export.verify.store import Proof, ProofRow
from core.worker.process import environment


def measure(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Execute a job."""
    directory = Path(job["directory"])
    if job["task"] == "reference":
        return _reference(job, directory, answers)
    proof = Proof.read(directory)
    exported, base = Path(job["exported"]), job.get("base")
    if job["task"] == "gguf":
        model, adapter = (exported, None) if base is None else (Path(base), exported)
        now = datetime.fromisoformat(proof.now) if proof.now else None
        reader = GgufReader(model, adapter, now, answers.progress)
        return compare(proof, reader, answers.progress).to_dict(proof, reader.name)
    from core.worker.export.verify.plain import compare_plain
    from core.worker.model.support import resolve_base
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


class GgufReader:
    """A GGUF file in llama.cpp; prompts are rendered from the template in its metadata.

    Args:
        path: The file.
        adapter: A GGUF file with an adapter to put on top; None for none.
        now: The date for templates.
        progress: Called with the share loaded; it may raise to cancel.
    """

    def __init__(self, path: Path, adapter: Path | None, now: datetime | None, progress: Progress) -> None:
        self._model = GgufModel(
            path, adapter, exact=True, progress=lambda share: progress(LOADING_FILE, int(share * 100), 100)
        )
        self._now = now
        self._template: GgufTemplate | None = None
        self.name = self._model.library.version

    def prompt_ids(self, row: ProofRow) -> list[int]:
        """Tokens of a row's prompt, as in llama.cpp's server."""
        if not row.messages:
            return self._model.tokenize(row.text, add_special=False)
        if self._template is None:
            self._template = GgufTemplate(self._model, self._now)
        return self._model.prompt_ids(self._template.render(row.messages, row.tools))

    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Logits after the tokens at some positions."""
        return self._model.logits(tokens, positions)

"""Measurements for the verification of an export, as jobs.

A request has a ``task``:

``reference``
    ``run``, ``step``, ``directory``, ``rows``, ``plain_base``, ``as_file``, ``base_sha256``: see
    :func:`core.worker.export.verify.reference.measure_reference`.
``gguf``, ``merged``, ``adapter``
    ``directory`` (of the measured answers), ``exported``, and ``base`` for an adapter: a GGUF file, or the name of the
    model, in 4 bits if ``quantized``, except for the layers of ``keep_16bit``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.config.targets import kept_patterns
from core.directories import Progress
from core.errors import UserError
from core.export.job import run_process
from core.export.llama_cpp import refuse_unreadable
from core.export.plan import LOADING_FILE
from core.export.request import Kind, Quant
from core.export.result import Agreement, Figures
from core.jobs.process import Answers
from core.models.architecture.gguf_header import read_gguf_header
from core.runs.catalog.trained import TrainedModel, find_trained
from core.runs.record.store import Run
from core.text import one_line
from core.worker.export.llama.model import GgufModel, GgufTemplate
from core.worker.export.verify.compare import Proof, ProofRow, compare
from core.worker.process import environment

if TYPE_CHECKING:
    from core.worker.export.model_directory import Way

#: The values of ``general.file_type`` (``llama_ftype`` of llama.cpp).
FILE_TYPES: dict[Quant, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q8_0": 7,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "BF16": 32,
}
PROGRAM = "core.worker.job verify"
_HINT = "Export it again."


def measure_trained(
    trained: TrainedModel,
    directory: Path,
    progress: Progress,
    rows: int,
    *,
    plain_base: bool,
    as_file: bool,
    base_sha256: str | None = None,
) -> None:
    """Measure the trained model, and keep its answers in a directory, for any number of comparisons.

    Rows come from ``data.eval``, else from the share that was held out, else from the training rows.

    Args:
        trained: The trained model.
        directory: Directory for the answers.
        progress: Called at least twice a second; may raise to give up, which ends the process.
        rows: How many rows.
        plain_base: Whether the adapter on the base in 16 bits is measured as well, if the run trained on 4 bits.
        as_file: Whether a model trained for a file answers with the file's weights, as all exports but adapters do.
        base_sha256: The fingerprint of the base, if the answers are kept for further exports.

    Raises:
        UserError: If the base or the rows are missing, or memory or disk are short.
    """
    request = {
        "task": "reference",
        "run": str(trained.run.path),
        "step": trained.step,
        "rows": rows,
        "plain_base": plain_base,
        "as_file": as_file,
        "base_sha256": base_sha256,
        "directory": str(directory),
    }
    run_process(PROGRAM, request, "the measurement of the trained model", progress, _HINT)


def compare_export(
    exported: Path,
    kind: Kind,
    quant: Quant | None,
    trained: TrainedModel,
    directory: Path,
    progress: Progress,
    *,
    way: Way | None = None,
    base: Path | None = None,
) -> Agreement:
    """Compare an exported file with the answers of the trained model; see :func:`measure_trained`.

    Whether the agreement is enough is :meth:`core.export.result.Agreement.failures`.

    Args:
        exported: The file, or its directory.
        kind: Its kind; not ``card``.
        quant: The type of its weights; None for an adapter.
        trained: Its source.
        directory: The directory of the answers.
        progress: As for :func:`measure_trained`.
        way: The weights that the adapter was merged into.
        base: The GGUF file of the base, if the export is a GGUF file of an adapter alone.

    Raises:
        NotVerifiedError: If the reader of its kind is not there.
        UserError: If the file cannot be read or has another type, or memory is short.
    """
    refuse_unreadable(kind)
    request = {
        **_request(exported.absolute(), kind, quant, trained, base and base.absolute()),
        "directory": str(directory),
    }
    found = run_process(PROGRAM, request, "the reader of the exported file", progress, _HINT)
    plain = None if found["plain"] is None else Figures(**found["plain"])
    return Agreement(**found | {"plain": plain}, quantized_base=way == "base" and trained.config.method.name == "qlora")


def _request(
    exported: Path, kind: Kind, quant: Quant | None, trained: TrainedModel, base: Path | None
) -> dict[str, Any]:
    """The request to the reader of an export."""
    if kind == "adapter":
        config = trained.config
        return {
            "task": "adapter",
            "exported": str(exported),
            "base": trained.base,
            "quantized": config.method.name == "qlora",
            "keep_16bit": kept_patterns(config.model.keep_16bit),
        }
    if kind == "merged":
        return {"task": "merged", "exported": str(exported)}
    file = next(exported.glob("*.gguf")) if exported.is_dir() else exported
    if base is not None:
        return {"task": "gguf", "exported": str(file), "base": str(base)}
    if quant is not None and read_gguf_header(file).metadata.get("general.file_type") != FILE_TYPES[quant]:
        raise UserError(f"{one_line(str(file))} does not say that its weights are {quant}.", "Export it again.")
    return {"task": "gguf", "exported": str(file)}


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
    trained = find_trained(Run(Path(job["run"])), job["step"])
    if trained.config.hardware.device != "cpu":
        environment.choose_gpu(trained.config.hardware.gpu)
    from core.worker.export.verify.reference import measure_reference
    from core.worker.process.openmp import SpinControl

    SpinControl().start()
    measure_reference(
        trained,
        directory,
        int(job["rows"]),
        answers.progress,
        plain_base=bool(job["plain_base"]),
        as_file=bool(job["as_file"]),
        base_sha256=job.get("base_sha256"),
    )
    return {}


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

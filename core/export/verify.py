"""Verification of an export: rows of the user's data through the trained model and through the written file.

Two processes run one after the other, so that only one model is in memory: the first measures the trained model, the
second reads the file with an independent program (llama.cpp, plain transformers, plain PEFT) and compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.config.targets import kept_patterns
from core.directories import Progress
from core.errors import UserError
from core.export.gguf.checks import INSTALL, has_library
from core.export.process import run_process
from core.export.request import Kind, Quant
from core.export.result import Agreement, Figures
from core.hardware.cpu import has_avx2
from core.models.architecture.gguf_header import read_gguf_header
from core.runs.catalog.trained import TrainedModel
from core.text import one_line

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


class NotVerifiedError(UserError):
    """The file cannot be verified on this machine, which says nothing about the file."""


def refuse_unreadable(kind: Kind) -> None:
    """Refuse an export that cannot be verified, before it is made.

    Raises:
        NotVerifiedError: If the reader of its kind is missing.
    """
    if kind not in ("gguf", "ollama"):
        return
    if not has_library():
        raise NotVerifiedError(
            "The file is not verified: llama.cpp's library is not installed.", f"Install it: {INSTALL}"
        )
    if not has_avx2():
        raise NotVerifiedError(
            "The file is not verified: llama.cpp's library needs a processor with AVX2.",
            "Verify it on another machine.",
        )


def measure_trained(
    trained: TrainedModel, directory: Path, progress: Progress, rows: int, *, plain_base: bool, as_file: bool
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
        "directory": str(directory),
    }
    run_process(PROGRAM, request, "the measurement of the trained model", progress, _HINT)


def compare(
    exported: Path,
    kind: Kind,
    quant: Quant | None,
    trained: TrainedModel,
    directory: Path,
    progress: Progress,
    *,
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
        base: The GGUF file of the base, if the export is a GGUF file of an adapter alone.

    Raises:
        NotVerifiedError: If the reader of its kind is not there.
        UserError: If the file cannot be read or has another type, or memory is short.
    """
    refuse_unreadable(kind)
    request = {**_request(exported, kind, quant, trained, base), "directory": str(directory)}
    found = run_process(PROGRAM, request, "the reader of the exported file", progress, _HINT)
    in_4_bits = trained.config.method.name == "qlora" and kind != "adapter"
    # A model trained for a file was merged in training already, so its weights are those of the file.
    is_merged = trained.file is not None and base is None
    plain = None if found["plain"] is None else Figures(**found["plain"])
    return Agreement(**found | {"plain": plain}, quantized_base=in_4_bits and not is_merged)


def _request(
    exported: Path, kind: Kind, quant: Quant | None, trained: TrainedModel, base: Path | None
) -> dict[str, Any]:
    """The request to the reader of an export."""
    if kind == "adapter":
        config = trained.config
        return {
            "task": "adapter",
            "exported": _text(exported),
            "base": trained.base,
            "quantized": config.method.name == "qlora",
            "keep_16bit": kept_patterns(config.model.keep_16bit),
        }
    if kind == "merged":
        return {"task": "merged", "exported": _text(exported)}
    file = next(exported.glob("*.gguf")) if exported.is_dir() else exported
    if base is not None:
        return {"task": "gguf", "exported": _text(file), "base": _text(base)}
    if quant is not None and read_gguf_header(file).metadata.get("general.file_type") != FILE_TYPES[quant]:
        raise UserError(f"{one_line(str(file))} does not say that its weights are {quant}.", "Export it again.")
    return {"task": "gguf", "exported": _text(file)}


def _text(path: Path) -> str:
    return str(path.absolute())

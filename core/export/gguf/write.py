"""GGUF files written: a model by llama.cpp's converter and quantizer, an adapter beside its base.

The file appears whole or not at all. Its directory is one that is being made (:func:`core.directories.new_directory`),
which nobody else writes to, and which is removed where the process is killed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import paths
from core.directories import Progress, disk_error, refuse_existing, require_space
from core.export.gguf.checks import Checked, check_model, require_quantizer
from core.export.gguf.metadata import entries
from core.export.gguf.options import GgufOptions
from core.export.gguf.sizes import gguf_bytes
from core.export.gguf.staging import own_templates, stage
from core.export.gguf.tools import fetch_converter
from core.export.kinds import CONVERTED, Quant
from core.export.process import run_process
from core.models.sandboxed import check_gguf
from core.sandbox.rights import reading

_WORKER = "core.worker.job"
#: Bytes that a process may take: what its libraries take, and for each number of the largest tensor.
_LIBRARIES, _BYTES_AT_WORK = 4 << 30, 16
#: Most tokens of the rows that an importance matrix is computed from, and of one of them. Each takes a forward pass on
#: the processor, and after some thousands little changes.
CALIBRATION_TOKENS, CALIBRATION_ROW = 10_000, 2048
_HINT = "Export merged, and convert it elsewhere."


def write_gguf(model: Path, target: Path, quant: Quant, options: GgufOptions, progress: Progress) -> tuple[str, ...]:
    """Write a model as one GGUF file.

    Args:
        model: A directory of safetensors in 16 or 32 bit as transformers saves it, with tokenizer files.
        target: The file; it must not exist.
        quant: The type of its weights.
        options: What it says of itself.
        progress: Told what goes on; it may raise to give up, and nothing remains then.

    Returns:
        Sentences on what llama.cpp's tokenizer does otherwise than the model's.

    Raises:
        UserError: If the converter cannot be fetched, the quantizer is not installed, the model is one that llama.cpp
            would read as another, or the disk is full or cannot be written.
    """
    require_quantizer(quant)
    refuse_existing(target)
    converter = fetch_converter(progress)
    progress("checking the model", None, None)
    checked = check_model(model, converter)
    options = _with_templates(model, options)
    # Quantized from weights that are not rounded before.
    first: Quant = quant if quant in CONVERTED else checked.dtype
    with _workspace(target, _space(checked, first, quant, options)) as work:
        result = work / "model.gguf"
        notes = _convert(model, result, first, options, converter, checked, work, progress)
        if quant not in CONVERTED:
            source, result = result, work / "quantized.gguf"
            _quantize(source, result, quant, options, checked, work, progress)
        check_gguf(result)
        result.rename(target)
    return notes


def write_adapter_gguf(adapter: Path, base: Path, target: Path, progress: Progress) -> None:
    """Write a LoRA adapter as a GGUF file of its own, for use beside its base as GGUF.

    Its scale is written as llama.cpp reads it, which knows no rsLoRA: the effect is the same.

    Args:
        adapter: A directory in PEFT's format.
        base: The directory of its base model.
        target: The file; it must not exist.
        progress: As for :func:`write_gguf`.

    Raises:
        UserError: If the adapter has parts that such a file cannot have (DoRA, whole modules, biases), with the advice
            to export merged; or as :func:`write_gguf`.
    """
    refuse_existing(target)
    converter = fetch_converter(progress)
    progress("checking the model", None, None)
    checked = check_model(base, converter)
    size = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
    with _workspace(target, 2 * size) as work:
        staged, result = work / "base", work / "adapter.gguf"
        staged.mkdir(mode=paths.DIRECTORY_MODE)
        stage(base, GgufOptions(), staged)
        job = {
            "converter": str(converter),
            "adapter": str(adapter.absolute()),
            "base": str(staged),
            "target": str(result),
            **_limits(checked, work, converter, adapter, staged),
        }
        run_process(f"{_WORKER} convert-adapter", job, "the conversion of the adapter", progress, _HINT)
        result.rename(target)


def _with_templates(model: Path, options: GgufOptions) -> GgufOptions:
    """Options with the model's own templates where none is given."""
    if options.template is not None:
        return options
    default, tools = own_templates(model)
    return replace(options, template=default, tool_template=tools)


def _convert(
    model: Path,
    target: Path,
    quant: Quant,
    options: GgufOptions,
    converter: Path,
    checked: Checked,
    work: Path,
    progress: Progress,
) -> tuple[str, ...]:
    staged = work / "staged"
    staged.mkdir(mode=paths.DIRECTORY_MODE)
    stage(model, options, staged)
    job = conversion_job(staged, target, quant, options, converter)
    based = () if options.base_gguf is None else (options.base_gguf,)
    job |= _limits(checked, work, converter, staged, *based)
    return tuple(run_process(f"{_WORKER} convert", job, "llama.cpp's converter", progress, _HINT)["notes"])


def conversion_job(staged: Path, target: Path, quant: Quant, options: GgufOptions, converter: Path) -> dict[str, Any]:
    """The job of the converter's process.

    Args:
        staged: The directory that is converted.
        target: The file.
        quant: One that the converter writes itself.
        options: What the file says of itself; its template is the one that is written.
        converter: The directory of the converter.
    """
    return {
        "converter": str(converter),
        "model": str(staged),
        "target": str(target),
        "quant": quant,
        "entries": [entry.to_list() for entry in entries(options)],
        "stops": list(options.stops),
        "template": options.template,
        "base_gguf": None if options.base_gguf is None else str(options.base_gguf),
    }


def _quantize(
    source: Path, target: Path, quant: Quant, options: GgufOptions, checked: Checked, work: Path, progress: Progress
) -> None:
    common = {"source": str(source), **_limits(checked, work)}
    importance = None
    if rows := options.calibration:
        importance = work / "importance.npz"
        job = {**common, "target": str(importance), "rows": rows}
        run_process(f"{_WORKER} importance", job, "the importance matrix", progress, _HINT)
    job = {
        **common,
        "target": str(target),
        "quant": quant,
        "importance": None if importance is None else str(importance),
        "rows": len(rows),
        "embeddings": "Q8_0" if options.is_exact else None,
        "expected": _bytes(checked, quant, options),
    }
    run_process(f"{_WORKER} quantize", job, "llama.cpp's quantizer", progress, _HINT)


def calibration_rows(rows: Iterable[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The rows that an importance matrix is computed from, up to a total of tokens.

    Args:
        rows: Rows as token ids; no more of them are asked for than are taken.
    """
    found: list[tuple[int, ...]] = []
    left = CALIBRATION_TOKENS
    for row in rows:
        if cut := tuple(row[: min(CALIBRATION_ROW, left)]):
            found.append(cut)
        left -= len(cut)
        if not left:
            break
    return tuple(found)


def _limits(checked: Checked, work: Path, *reads: Path) -> dict[str, Any]:
    """Limits and rights of a process: memory, the files that it reads, and the directory for its own."""
    return {
        "memory": _LIBRARIES + _BYTES_AT_WORK * checked.largest,
        "reads": list(reading(*reads).reads),
        "writes": [str(work.absolute())],
    }


def _bytes(checked: Checked, quant: Quant, options: GgufOptions) -> int:
    """Bytes of the file's tensors."""
    embeddings = "Q8_0" if options.is_exact else None
    has_imatrix = bool(options.calibration)
    return gguf_bytes(checked.elements, checked.architecture, quant, has_imatrix=has_imatrix, embeddings=embeddings)


def _space(checked: Checked, first: Quant, quant: Quant, options: GgufOptions) -> int:
    """Bytes that the files take together."""
    return round(sum(_bytes(checked, kind, options) for kind in {first, quant}) * 1.02) + (16 << 20)


@contextlib.contextmanager
def _workspace(target: Path, needed: int) -> Iterator[Path]:
    """A directory beside the file, for what is made on the way; gone in the end."""
    try:
        require_space(target.parent, needed, f"writing {target.name}", "Make room, or write it to another disk.")
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as directory:
            yield Path(directory)
    except OSError as error:
        raise disk_error(target.parent, error) from error

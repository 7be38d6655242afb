"""Quantization of GGUF files with llama.cpp's quantizer, as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import UserError
from core.export.stages import QUANTIZING
from core.jobs.process import Answers, growing
from core.worker.export.llama.library import Library, as_path, load_library, threads


def quantize(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Quantize a GGUF file.

    Args:
        job: ``source`` and ``target`` (paths), ``quant``, ``expected`` bytes of the result;
            ``embeddings``, the type of embeddings and head, or None; ``importance`` (a file of
            :mod:`core.worker.export.gguf.importance`) or None, and its number of ``rows``.
        answers: Receives the progress.

    Returns:
        ``bytes`` of the result.

    Raises:
        UserError: If the quantizer fails.
    """
    answers.progress("loading the quantizer")
    library = load_library()
    ffi, lib = library.ffi, library.lib
    target = Path(job["target"])
    parameters = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    parameters.nthread = threads()
    parameters.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{job['quant']}")
    if job["embeddings"] is not None:
        kind = getattr(lib, f"GGML_TYPE_{job['embeddings']}")
        parameters.token_embedding_type = parameters.output_tensor_type = kind
    kept = None
    if job["importance"] is not None:
        kept = _set_importance(library, parameters, Path(job["importance"]), int(job["rows"]))
    with growing(answers, QUANTIZING, target, int(job["expected"])):
        code = lib.llama_model_quantize(as_path(Path(job["source"])), as_path(target), parameters)
    del kept
    if code != 0:
        raise UserError(
            f"llama.cpp's quantizer failed to write {job['quant']}{library.failure()}.",
            "If the disk is full, make room; otherwise export F16, and quantize it elsewhere.",
        )
    return {"bytes": target.stat().st_size}


def _set_importance(library: Library, parameters: Any, path: Path, rows: int) -> list[Any]:
    """Pass an importance matrix to the quantizer: a C array of named vectors, terminated by one without a name; and
    record it in the file under the keys of llama.cpp's own program.

    Returns:
        References to keep until the quantizer is done.
    """
    import numpy as np

    ffi, lib = library.ffi, library.lib
    with np.load(path) as found:
        vectors = {name: np.ascontiguousarray(found[name], dtype=np.float32) for name in found.files}
    array = ffi.new("struct llama_model_imatrix_data[]", len(vectors) + 1)
    kept: list[Any] = [array, vectors]
    for entry, (name, values) in zip(array, vectors.items(), strict=False):
        text, data = ffi.new("char[]", name.encode()), ffi.from_buffer("float[]", values)
        kept += [text, data]
        entry.name, entry.data, entry.size = text, data, values.size
    array[len(vectors)].name = ffi.NULL
    parameters.imatrix = array
    counts = {"entries_count": len(vectors), "chunks_count": rows}
    # Zeros at the end: an empty key terminates the array.
    said = ffi.new("struct llama_model_kv_override[]", len(counts) + 2)
    for entry, (name, count) in zip(said, counts.items(), strict=False):
        entry.key = f"quantize.imatrix.{name}".encode()
        entry.tag, entry.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, count
    entry = said[len(counts)]
    entry.key, entry.tag = b"quantize.imatrix.dataset", lib.LLAMA_KV_OVERRIDE_TYPE_STR
    entry.val_str = b"rows of the training"
    parameters.kv_overrides = said
    return [*kept, said]

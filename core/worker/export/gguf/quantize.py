"""Quantization of GGUF files with llama.cpp's quantizer, and importance matrices for it, as jobs.

An importance matrix has, for each column of a weight, the mean square of its activations over the tokens of some rows:
the quantizer rounds columns with small activations more coarsely. llama.cpp computes the rows, and calls back at every
product of a weight with activations, so names and shapes are the quantizer's own, for any architecture.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.export.plan import IMPORTANCE, LOADING_MODEL, QUANTIZING
from core.jobs.process import Answers, growing
from core.worker.export.llama.model import Library, as_path, load_library, threads

Array = npt.NDArray[Any]


def quantize(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Quantize a GGUF file.

    Args:
        job: ``source`` and ``target`` (paths), ``quant``, ``expected`` bytes of the result;
            ``embeddings``, the type of embeddings and head, or None; ``importance`` (a file of
            :func:`compute_importance`) or None, and its number of ``rows``.
        answers: Receives the progress.

    Returns:
        Nothing beside the file.

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
    return {}


def _set_importance(library: Library, parameters: Any, path: Path, rows: int) -> list[Any]:
    """Pass an importance matrix to the quantizer: a C array of named vectors, terminated by one without a name; and
    record it in the file under the keys of llama.cpp's own program.

    Returns:
        References to keep until the quantizer is done.
    """
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


# Importance.

_DECLARATIONS = """
struct ggml_tensor {
    int type;
    void * buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    struct ggml_tensor * src[10];
    struct ggml_tensor * view_src;
    size_t view_offs;
    void * data;
    char name[64];
    void * extra;
    char padding[8];
};
const char * ggml_get_name(const struct ggml_tensor * tensor);
const char * ggml_op_desc(const struct ggml_tensor * tensor);
"""


class Ggml:
    """Access to ggml's tensors; see :func:`load_ggml`.

    Args:
        library: llama.cpp's library.
    """

    def __init__(self, library: Library) -> None:
        from llama_cpp_py_sync import _cffi_bindings as bindings

        self._ffi = library.ffi
        self._ffi.cdef(_DECLARATIONS)
        self._lib: Any = bindings.get_backend_base_lib()

    def operation(self, tensor: Any) -> str:
        """The operation that computes a tensor: ``MUL_MAT``.

        Raises:
            UserError: If the library's tensors have another layout.
        """
        if self.text(tensor.name) != self.text(self._lib.ggml_get_name(tensor)):
            raise UserError(
                "The installed llama-cpp-py-sync is of another form than is known here.",
                "Install version 0.11739, or export Q8_0, which needs no importance matrix.",
            )
        return self.text(self._lib.ggml_op_desc(tensor))

    def text(self, text: Any) -> str:
        """A C string."""
        found: bytes = self._ffi.string(text)
        return found.decode("utf-8", errors="replace")

    def array(self, tensor: Any, dtype: type[np.generic]) -> Array:
        """A view of a tensor's numbers, outermost dimension first, whatever its strides.

        Args:
            tensor: A tensor in host memory.
            dtype: The type of its numbers.
        """
        shape = tuple(int(size) for size in reversed(list(tensor.ne)))
        strides = tuple(int(step) for step in reversed(list(tensor.nb)))
        extent = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
        raw = np.frombuffer(self._ffi.buffer(self._ffi.cast("char *", tensor.data), extent), dtype=dtype)
        return np.lib.stride_tricks.as_strided(raw, shape, strides)


@functools.cache
def load_ggml() -> Ggml:
    """Access to the tensors of this process's library; their C declarations may be loaded only once.

    Raises:
        UserError: If the library is missing or cannot be loaded.
    """
    return Ggml(load_library())


#: Prefix of weights that are quantized by importance; embedding and head have other uses too.
_PREFIX = "blk."
_PRODUCT, _EXPERTS = "MUL_MAT", "MUL_MAT_ID"
_F32 = 0
#: Most tokens and rows of a batch; the logits of all its tokens have their place in memory.
_BATCH, _BATCH_ROWS = 512, 64
#: Least importance of a column, as a share of the mean: unused columns must be rounded somehow, too.
_FLOOR = 1e-4


def compute_importance(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Compute an importance matrix and write it as an npz file, a vector for each weight.

    Args:
        job: ``source`` (a GGUF file in 16 or 32 bit), ``target``, ``rows`` of token ids.
        answers: Receives the progress.

    Returns:
        Numbers of ``weights`` and ``tokens``.

    Raises:
        UserError: If llama.cpp cannot read the file, or its tensors have an unknown layout.
    """
    answers.progress(LOADING_MODEL)
    rows = [list(map(int, row)) for row in job["rows"]]
    counter = _Counter(load_library())
    counter.compute(Path(job["source"]), rows, answers)
    found = counter.means()
    if not found:
        raise UserError("llama.cpp computed none of the model's weights.", "Export Q8_0, which needs no matrix.")
    with Path(job["target"]).open("wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]
    return {"weights": len(found), "tokens": sum(map(len, rows))}


class _Counter:
    """Sums of squares of activations, by weight. Weights that multiply the same activations, such as those of queries,
    keys and values, share the sums of the first of them.

    Args:
        library: llama.cpp's library.
    """

    def __init__(self, library: Library) -> None:
        self._library, self._ggml = library, load_ggml()
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, npt.NDArray[np.float64]] = {}
        self._shared: dict[str, str] = {}
        #: The first weight that multiplies an activation, by the activation's address in the present graph.
        self._first: dict[Any, str] = {}
        #: The last weight that is counted: what follows, the head, is computed only once.
        self._last = ""
        self._failure: BaseException | None = None

    def compute(self, source: Path, rows: list[list[int]], answers: Answers) -> None:
        """Compute rows, each for itself, several at once."""
        ffi, lib = self._library.ffi, self._library.lib
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        # Weights keep the layout of the file.
        settings.use_extra_bufts = False
        model = lib.llama_model_load_from_file(as_path(source), settings)
        if model == ffi.NULL:
            raise UserError(
                f"llama.cpp cannot read the file that its converter wrote{self._library.failure()}.", "Export merged."
            )
        callback = ffi.callback("ggml_backend_sched_eval_callback", self._evaluated)
        choices = lib.llama_context_default_params()
        choices.n_ctx = choices.n_batch = choices.n_ubatch = _BATCH
        choices.n_seq_max, choices.kv_unified = _BATCH_ROWS, True
        choices.n_threads = choices.n_threads_batch = threads()
        choices.cb_eval = callback
        context = lib.llama_init_from_model(model, choices)
        if context == ffi.NULL:
            lib.llama_model_free(model)
            raise UserError(
                f"llama.cpp cannot compute this model here{self._library.failure()}.",
                "If memory is short, close what else holds it; Q8_0 needs no importance matrix.",
            )
        try:
            done, total = 0, sum(map(len, rows))
            for batch in _batches(rows):
                answers.progress(IMPORTANCE, done, total)
                lib.llama_memory_clear(lib.llama_get_memory(context), True)
                self._decode(context, batch)
                done += sum(map(len, batch))
        finally:
            lib.llama_free(context)
            lib.llama_model_free(model)

    def means(self) -> dict[str, Array]:
        """Mean squares by weight; those of experts are concatenated."""
        found: dict[str, Array] = {}
        for name, sums in self._sums.items():
            counts = self._counts[name][:, None]
            means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
            # An expert that no row has chosen gets equal importance for all columns.
            means[self._counts[name] == 0] = 1.0
            means += _FLOOR * means.mean(axis=1, keepdims=True)
            if np.isfinite(means).all() and (means > 0).all():
                found[name] = means.astype(np.float32).ravel()
        return found | {name: found[first] for name, first in self._shared.items() if first in found}

    def _decode(self, context: Any, batch: list[list[int]]) -> None:
        self._first.clear()
        # All logits are requested: the last layer skips the others.
        code = self._library.decode(context, batch, 0, range(sum(map(len, batch))))
        self._last = next(reversed(self._sums), "")
        if self._failure is not None:
            raise self._failure
        if code != 0:
            raise UserError(
                f"llama.cpp failed to compute a row for the importance matrix{self._library.failure()}.",
                "Export Q8_0, which needs none.",
            )

    def _evaluated(self, tensor: Any, ask: bool, _: Any) -> bool:
        """Called by llama.cpp: first to ask if a result is wanted, then with it."""
        try:
            if ask:
                return self._is_counted(tensor)
            return self._count(tensor) != self._last
        except BaseException as error:  # it cannot pass through C
            self._failure = error
            return False

    def _is_counted(self, tensor: Any) -> bool:
        if self._ggml.operation(tensor) not in (_PRODUCT, _EXPERTS):
            return False
        null = self._library.ffi.NULL
        weight, activation = tensor.src[0], tensor.src[1]
        if weight == null or activation == null or activation.type != _F32:
            return False
        name = self._ggml.text(weight.name)
        if not (name.startswith(_PREFIX) and name.endswith(".weight")):
            return False
        first = self._first.setdefault((activation, tensor.src[2]), name)
        if first != name:
            self._shared[name] = first
        return first == name

    def _count(self, tensor: Any) -> str:
        """Count the activations of a product; returns the name of its weight."""
        weight, activation = tensor.src[0], tensor.src[1]
        values = self._ggml.array(activation, np.float32)
        name, width = self._ggml.text(weight.name), values.shape[-1]
        if self._ggml.operation(tensor) == _PRODUCT:
            self._add(name, 1, 0, values.reshape(-1, width))
            return name
        # Activations are (tokens, experts or 1, width), and the choice (tokens, experts).
        chosen = self._ggml.array(tensor.src[2], np.int32)[0, 0]
        spread = np.broadcast_to(values[0], (*chosen.shape, width))
        for expert in np.unique(chosen):
            self._add(name, int(weight.ne[2]), int(expert), spread[chosen == expert])
        return name

    def _add(self, name: str, parts: int, place: int, values: Array) -> None:
        sums = self._sums.setdefault(name, np.zeros((parts, values.shape[1])))
        counts = self._counts.setdefault(name, np.zeros(parts))
        sums[place] += np.einsum("ij,ij->j", values, values)
        counts[place] += len(values)


def _batches(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """Rows together up to the size of a batch; a longer one is cut."""
    batch: list[list[int]] = []
    for row in (row[:_BATCH] for row in rows):
        if batch and (len(batch) == _BATCH_ROWS or sum(map(len, batch)) + len(row) > _BATCH):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch

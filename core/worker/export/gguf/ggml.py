"""Tensors of ggml, as llama.cpp computes them: what of ggml.h tells which weight an activation meets.

The layout of the structure is written down here; it is compared with the library's own answer before it is trusted.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.worker.export.llama.library import Library, load_library

Array = npt.NDArray[Any]
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
    """Tensors of ggml; see :func:`load_ggml`.

    Args:
        library: llama.cpp's library, which computes them.
    """

    def __init__(self, library: Library) -> None:
        from llama_cpp_py_sync import _cffi_bindings as bindings

        self._ffi = library.ffi
        self._ffi.cdef(_DECLARATIONS)
        self._lib: Any = bindings.get_backend_base_lib()

    def operation(self, tensor: Any) -> str:
        """What a tensor is the result of: ``MUL_MAT``.

        Raises:
            UserError: If the library's tensors are of another layout.
        """
        if self.text(tensor.name) != self.text(self._lib.ggml_get_name(tensor)):
            raise UserError(
                "The installed llama-cpp-py-sync is of another form than is known here.",
                "Install version 0.11739, or export Q8_0, which needs no importance matrix.",
            )
        return self.text(self._lib.ggml_op_desc(tensor))

    def text(self, text: Any) -> str:
        """A text of C."""
        found: bytes = self._ffi.string(text)
        return found.decode("utf-8", errors="replace")

    def array(self, tensor: Any, dtype: type[np.generic]) -> Array:
        """A view of a tensor's numbers, outermost dimension first, whatever its strides.

        Args:
            tensor: One in the processor's memory.
            dtype: The type of its numbers.
        """
        shape = tuple(int(size) for size in reversed(list(tensor.ne)))
        strides = tuple(int(step) for step in reversed(list(tensor.nb)))
        extent = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
        raw = np.frombuffer(self._ffi.buffer(self._ffi.cast("char *", tensor.data), extent), dtype=dtype)
        return np.lib.stride_tricks.as_strided(raw, shape, strides)


@functools.cache
def load_ggml() -> Ggml:
    """The tensors of this process' library, which can be declared once only.

    Raises:
        UserError: If the library is not installed or cannot be loaded.
    """
    return Ggml(load_library())

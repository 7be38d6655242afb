"""llama.cpp's library through cffi, silent but for its errors.

It is the package ``llama-cpp-py-sync``. Of that only the C functions are used: llama.h, and the few of ggml.h that
are declared here. Whatever is passed by pointer has to be kept alive by the caller.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

_ERROR = 4
#: What of ggml.h tells which weight an activation meets. The layout is compared with the library's own answer before
#: it is trusted.
_GGML = """
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


@dataclass(frozen=True)
class Llama:
    """The library.

    Args:
        ffi: cffi's view of its types.
        lib: The functions of llama.h.
        ggml: Those of ggml.h.
    """

    ffi: Any
    lib: Any
    ggml: Any


@functools.cache
def load_library() -> Llama:
    """Load the library once.

    Raises:
        ImportError: If it is not installed.
    """
    from llama_cpp_py_sync import _cffi_bindings as bindings

    ffi, lib = bindings.get_ffi(), bindings.get_lib()
    ffi.cdef(_GGML)

    @ffi.callback("void(enum ggml_log_level, const char *, void *)")  # type: ignore[untyped-decorator]
    def log(level: int, text: Any, _: Any) -> None:
        if level == _ERROR:
            sys.stderr.write(ffi.string(text).decode("utf-8", errors="replace"))

    lib.llama_log_set(log, ffi.NULL)
    lib.llama_backend_init()
    _kept.append(log)
    return Llama(ffi, lib, bindings.get_backend_base_lib())


#: Callbacks that the library calls as long as it is loaded.
_kept: list[Any] = []

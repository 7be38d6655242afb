"""llama.cpp's library, through the C interface of the package ``llama-cpp-py-sync``."""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.export.gguf.checks import INSTALL
from core.text import one_line

#: Level of ggml's log for errors.
_ERROR = 4
#: The latest errors of the library's log; the first one has the reason of a failure.
_errors: deque[str] = deque(maxlen=20)


class Library:
    """The functions of llama.cpp, and helpers for their arguments.

    A structure passed by its address must stay referenced in Python until the last call that reads it.
    """

    def __init__(self) -> None:
        from llama_cpp_py_sync import _cffi_bindings as bindings
        from llama_cpp_py_sync._version import __llama_cpp_tag__, __version__

        self.ffi: Any = bindings.get_ffi()
        self.lib: Any = bindings.get_lib()
        self.version = f"llama.cpp {__llama_cpp_tag__} (llama-cpp-py-sync {__version__})"
        # It must live as long as the library, which calls it.
        self._log = self.ffi.callback("void(enum ggml_log_level, const char *, void *)", self._hear)
        self.lib.llama_log_set(self._log, self.ffi.NULL)
        self.lib.llama_backend_init()

    def _hear(self, level: int, text: Any, _: Any) -> None:
        if level == _ERROR:
            said = self.ffi.string(text).decode("utf-8", "replace")
            _errors.append(said)
            sys.stderr.write(said)

    def decode(self, context: Any, tokens: Sequence[int], begin: int, places: Collection[int]) -> int:
        """Let a context read tokens.

        Args:
            context: The context.
            tokens: The tokens.
            begin: The position of the first token.
            places: Places of tokens whose logits are needed.

        Returns:
            0, or the library's error code.
        """
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for place, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, begin + place
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
                batch.logits[place] = place in places
            return int(self.lib.llama_decode(context, batch))
        finally:
            self.lib.llama_batch_free(batch)

    def failure(self) -> str:
        """The first error logged since the last call, as the rest of a sentence; empty without one.

        The errors after it are only consequences.
        """
        lines = [one_line(line.strip(), 200) for line in _errors if line.strip()]
        _errors.clear()
        return f": {lines[0].rstrip('.')}" if lines else ""


@functools.cache
def load_library() -> Library:
    """The library, loaded once per process.

    Raises:
        UserError: If it is not installed or cannot be loaded.
    """
    try:
        return Library()
    except ImportError as error:
        raise UserError(
            "llama.cpp's library is not installed, so GGUF files cannot be read.",
            f"Install it: {INSTALL}",
        ) from error
    except (OSError, RuntimeError, AttributeError) as error:
        reason = one_line(str(error), 200).rstrip(".")
        raise UserError(f"llama.cpp's library cannot be loaded: {reason}.", f"Install it again: {INSTALL}") from error


def threads() -> int:
    """Compute threads: ``OMP_NUM_THREADS``, else the number of this process's cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").strip()
    if wanted.isascii() and wanted.isdecimal() and 0 < int(wanted) <= 512:
        return int(wanted)
    return max(len(os.sched_getaffinity(0)), 1)


def as_path(path: Path) -> bytes:
    """A path as the library's argument."""
    return os.fsencode(path)

"""Sandbox process: ``python -m core.sandbox``.

It serves calls from :mod:`core.sandbox.pool`, one after the other, until its standard input ends. A request comes from
the process that started it and is a pickle; an answer is JSON, as it derives from untrusted input.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

from core.errors import UserError
from core.helper import tie_to_parent
from core.sandbox.frames import FrameError, read_frame, write_frame
from core.sandbox.limits import TimeLimitError, confine, cpu_limit
from core.sandbox.signature import dump


def main() -> int:
    """Serve calls; returns the exit code."""
    tie_to_parent()
    confine()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Output of libraries must not mix with the answers.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    try:
        while True:
            answer, is_spent = _answer(read_frame(requests))
            write_frame(answers, answer)
            if is_spent:
                return 1
    except (FrameError, OSError):
        return 0


def _answer(request: bytes) -> tuple[bytes, bool]:
    """The answer to a request, and whether this process must not be reused."""
    is_spent = False
    try:
        # From the process that started this one, so it is trusted.
        module, name, seconds, args, kwargs, directory, variables = pickle.loads(request)  # noqa: S301
        _stand_in(directory, variables)
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        with cpu_limit(seconds):
            return dump({"value": function(*args, **kwargs)}), False
    except UserError as error:
        value: dict[str, Any] = {"error": error.message, "hint": error.hint}
    except TimeLimitError:
        value, is_spent = {"late": True}, True
    except MemoryError:
        value, is_spent = {"memory": True}, True
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # any exception of the libraries, Rust panics included
        value = {"failure": f"{type(error).__name__}: {error}"[:2000]}
    return dump(value), is_spent


def _stand_in(directory: str, variables: dict[str, str]) -> None:
    """Adopt the caller's working directory and environment, for relative paths and the home."""
    try:
        os.chdir(directory)
    except OSError:
        # It has been removed; the previous caller's directory must not be used.
        os.chdir("/")
    # Tokenizers would use all cores, which a run may need.
    variables["TOKENIZERS_PARALLELISM"] = "false"
    if os.environ != variables:
        os.environ.clear()
        os.environ.update(variables)


if __name__ == "__main__":
    sys.exit(main())

"""Imports of the slowest libraries, without the parts that a run does not use."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def import_libraries() -> None:
    """Import everything the recipe needs.

    bitsandbytes marks its fallbacks for :func:`torch.compile` at import, which loads torch's compilers: a third of the
    start of a run. Here a function is compiled on its first call, which on most machines never happens.
    """
    with without_collections():
        with compiling_on_first_call():
            import bitsandbytes  # noqa: F401
        read_models_once()
        import core.worker.train  # noqa: F401


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Context without garbage collection. Imports create a million objects and hardly any cycles, and repeated scans
    take a fifth of the time. Objects left at the end are frozen, so they are never scanned again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def read_models_once() -> None:
    """Make transformers reuse its scan of its model files.

    It reads all 1,700 files (version 5) to find their exports: once at import and again for the first model, under
    another path to the same directory that misses its cache.
    """
    import transformers.utils.import_utils as utils

    read = getattr(utils, "create_import_structure_from_path", None)
    if callable(read) and not hasattr(read, "_read"):

        def by_directory(path: Any) -> Any:
            """Import structure of a directory, or of a file's directory, always under the path of the first scan."""
            return read(Path(path).parent if Path(path).is_file() else path)

        by_directory._read = read  # type: ignore[attr-defined]
        utils.create_import_structure_from_path = by_directory


@contextlib.contextmanager
def compiling_on_first_call() -> Iterator[None]:
    """Context in which :func:`torch.compile` returns at once and compiles on the first call."""
    import torch

    at_once = torch.compile
    torch.compile = functools.partial(_on_first_call, at_once)
    try:
        yield
    finally:
        torch.compile = at_once


def _on_first_call(compile_now: Callable[..., Any], model: Any = None, **options: Any) -> Any:
    if model is None:
        return functools.partial(_on_first_call, compile_now, **options)
    made: list[Any] = []

    @functools.wraps(model)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(compile_now(model, **options))
        return made[0](*args, **kwargs)

    return call

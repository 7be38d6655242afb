"""Imports of the libraries that take longest, without the parts that a run does not use."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def import_libraries() -> None:
    """Import what the recipe imports.

    bitsandbytes marks its fallbacks for :func:`torch.compile` when it is imported, which loads torch's compilers: a
    third of the whole start of a run. Here a function is compiled when it is first called, which on most machines is
    never.
    """
    with without_collections():
        with compiling_on_first_call():
            import bitsandbytes  # noqa: F401
        read_models_once()
        import core.worker.train  # noqa: F401


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Inside, Python does not look for reference cycles: importing makes a million objects and hardly any cycle, and
    looking through them again and again takes a fifth of the time. What is there afterwards is not looked at again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def read_models_once() -> None:
    """Have transformers know its models' files when it asks for them again.

    It reads all of them, 1,700 in version 5, to know what they export: once when it is imported and again with the
    first model, where it names the same directory in another way and does not find what it had kept of it.
    """
    import transformers.utils.import_utils as utils

    read = getattr(utils, "create_import_structure_from_path", None)
    if callable(read) and not isinstance(read, _ByDirectory):
        utils.create_import_structure_from_path = _ByDirectory(read)


class _ByDirectory:
    """Reads what a directory exports, or that of a file, the former under the name that it has been read with."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __call__(self, path: Any) -> Any:
        return self._read(Path(path).parent if Path(path).is_file() else path)


@contextlib.contextmanager
def compiling_on_first_call() -> Iterator[None]:
    """Inside, :func:`torch.compile` returns at once, and compiles when the function is first called."""
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

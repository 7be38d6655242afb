"""The import of the libraries that take longest, without what a run does not use of them."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
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

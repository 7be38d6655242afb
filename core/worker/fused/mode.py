"""Switch for the passes that use the fused layers (passes with gradients, and passes compared with them), and typed
calls of autograd functions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_compared: list[None] = []


@contextlib.contextmanager
def comparable() -> Iterator[None]:
    """A context in which passes without gradients are computed like passes with them.

    Where the log-probability of an answer is computed once with gradients and once without, the difference is the
    training signal. Two ways of rounding would add an error that grows with the answer.
    """
    _compared.append(None)
    try:
        yield
    finally:
        _compared.pop()


def is_fused() -> bool:
    """True if the current pass uses the fused layers."""
    return torch.is_grad_enabled() or bool(_compared)


def apply(function: type[torch.autograd.Function], *arguments: object) -> torch.Tensor:
    """The output of an autograd function.

    Args:
        function: The function.
        arguments: Its arguments.
    """
    out: torch.Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


def apply_to_several(function: type[torch.autograd.Function], *arguments: object) -> tuple[torch.Tensor, ...]:
    """The outputs of an autograd function that has several.

    Args:
        function: The function.
        arguments: Its arguments.
    """
    out: tuple[torch.Tensor, ...] = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return out

"""Which passes the fused parts are taken for: those with gradients, and those that are compared with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_compared: list[None] = []


@contextlib.contextmanager
def comparable() -> Iterator[None]:
    """Inside, passes without gradients are computed as those with them.

    Where the log-probability of an answer is taken once with gradients and once without, the difference is what is
    learned from. Two ways to round would put a difference of their own there, which grows with the answer.
    """
    _compared.append(None)
    try:
        yield
    finally:
        _compared.pop()


def is_fused() -> bool:
    """Whether this pass is one for the fused parts."""
    return torch.is_grad_enabled() or bool(_compared)

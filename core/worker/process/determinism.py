"""Determinism: whether a resumed run ends bit for bit like an uninterrupted one.

A checkpoint always holds the exact state, and on a CPU the following steps are exact too. On a GPU some kernels, mainly
attention's backward, add in the order in which their threads arrive, so two passes over the same numbers differ in the
last bits. Deterministic versions exist and are slower.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Literal

import torch

from core.errors import UserError

Determinism = Literal["strict", "fast"]

#: Notice of a run that is not strict, and its advice.
TO_ROUNDING = (
    "This run is fast, not strict: a checkpoint holds its state exactly, and what a GPU computes from it is equal to "
    "rounding, not bit for bit."
)
BIT_FOR_BIT = "Set train.deterministic = strict in a new run for bit for bit; attention's backward pass is slower then."
#: Variable that torch's deterministic matrix products need, and its two accepted values.
_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
_NO_SUCH_FORM = re.compile(r"^(?P<operation>.{1,120}?) does not have a deterministic implementation, but you set")


def choose_determinism(wanted: str, device: str) -> Determinism:
    """Determinism of ``train.deterministic`` on a type of device. A CPU is always strict, since that costs nothing
    there.

    Args:
        wanted: ``auto``, ``strict`` or ``fast``.
        device: ``cpu`` or ``cuda``.
    """
    return "strict" if device == "cpu" or wanted == "strict" else "fast"


def fix_workspace(wanted: str) -> None:
    """Give matrix products the fixed workspace that deterministic ones need. Must be called before the first product on
    a GPU, and so before the device is known.

    Args:
        wanted: Value of ``train.deterministic``.
    """
    if wanted == "strict" and os.environ.get(_WORKSPACE) not in _WORKSPACES:
        os.environ[_WORKSPACE] = _WORKSPACES[0]


def apply_determinism(kind: Determinism, device: str) -> None:
    """Make torch use deterministic kernels if requested, in addition to :func:`fix_workspace`.

    Args:
        kind: Result of :func:`choose_determinism`.
        device: ``cpu``, which needs nothing, or ``cuda``.
    """
    if kind == "fast" or device == "cpu":
        return
    torch.use_deterministic_algorithms(True)
    # Otherwise every new tensor is filled with NaN, which costs more than the kernels.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def nondeterminism_explained() -> Iterator[None]:
    """Turn torch's refusal of an operation without a deterministic implementation into a user error.

    Raises:
        UserError: Instead of it.
    """
    try:
        yield
    except RuntimeError as error:
        match = _NO_SUCH_FORM.match(str(error))
        if match is None:
            raise
        raise UserError(
            f"train.deterministic is strict, and {match['operation']} has no deterministic form on this device.",
            "Set train.deterministic = fast and start a new run: it goes on from a checkpoint equal to rounding.",
        ) from error

"""Determinism: whether a run that goes on from a checkpoint ends bit for bit as one that was never interrupted.

The state that a checkpoint holds is exact always. On a CPU what is computed from it is as well. On a GPU some kernels
add up in the order in which their threads come to it, attention's gradient above all, and two passes over the same
numbers differ in the last bits; deterministic forms of them exist, which take more time.
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

#: Notice of a run that is not strict, and what would make it so.
TO_ROUNDING = (
    "This run is fast, not strict: a checkpoint holds its state exactly, and what a GPU computes from it is equal to "
    "rounding, not bit for bit."
)
BIT_FOR_BIT = "Set train.deterministic = strict in a new run for bit for bit; attention's backward pass is slower then."
#: What torch's deterministic matrix products ask for, and the two values that it accepts.
_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
_NO_SUCH_FORM = re.compile(r"^(?P<operation>.{1,120}?) does not have a deterministic implementation, but you set")


def choose_determinism(wanted: str, device: str) -> Determinism:
    """The determinism of ``train.deterministic`` on a type of device. A CPU is strict whatever is wanted, since that
    costs nothing there.

    Args:
        wanted: ``auto``, ``strict`` or ``fast``.
        device: ``cpu`` or ``cuda``.
    """
    return "strict" if device == "cpu" or wanted == "strict" else "fast"


def fix_workspace(wanted: str) -> None:
    """Give matrix products the fixed workspace that deterministic ones need; to be called before the first on a GPU,
    and so before the device is known.

    Args:
        wanted: As ``train.deterministic``.
    """
    if wanted == "strict" and os.environ.get(_WORKSPACE) not in _WORKSPACES:
        os.environ[_WORKSPACE] = _WORKSPACES[0]


def apply_determinism(kind: Determinism, device: str) -> None:
    """Have torch use deterministic kernels where that is asked for, beside :func:`fix_workspace`.

    Args:
        kind: What :func:`choose_determinism` chose.
        device: ``cpu``, where nothing need be set, or ``cuda``.
    """
    if kind == "fast" or device == "cpu":
        return
    torch.use_deterministic_algorithms(True)
    # Else every new tensor is filled with NaN, which would cost more than the kernels do.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def nondeterminism_explained() -> Iterator[None]:
    """Turn torch's refusal of an operation without a deterministic form into a sentence.

    Raises:
        UserError: In its place.
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

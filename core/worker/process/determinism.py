"""Determinism, whether a resumed run ends bit for bit like an uninterrupted one, and state of random generators.

A checkpoint always holds the exact state, and on a CPU the following steps are exact too. On a GPU some kernels, mainly
attention's backward, add in the order in which their threads arrive, so two passes over the same numbers differ in the
last bits. Deterministic versions exist and are slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
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


def rng_state() -> dict[str, Any]:
    """State of every random generator used in training, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(internal), gauss_next],
    }
    # Only of a GPU in use: otherwise a run on the CPU would allocate GPU memory.
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [torch.cuda.get_rng_state()]
    return state


def seed_unused(seed: int) -> None:
    """Seed Python's and NumPy's generators, which checkpoints save and training never uses, so that equal runs have
    equal checkpoints. Torch's is seeded where it is first used.

    Args:
        seed: Of the run.
    """
    random.seed(seed)
    np.random.seed(seed % (1 << 32))


def restore_rng(state: dict[str, Any]) -> None:
    """Restore :func:`rng_state`, even if saved with another number of cards."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if state.get("cuda") and torch.cuda.is_available():
        # Earlier versions kept one for each visible card, and trained on the first.
        torch.cuda.set_rng_state(state["cuda"][0])


@contextlib.contextmanager
def own_draws(seed: int, step: int, rank: int) -> Iterator[None]:
    """Context in which torch draws from numbers specific to a process and a step, because dropout must differ between
    processes. Afterwards the generators continue as if nothing had been drawn, so all processes and checkpoints have
    the same state.

    Args:
        seed: Of the run.
        step: Steps done.
        rank: Rank of the process.
    """
    before = rng_state()
    digest = hashlib.blake2b(f"{seed}:{step}:{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
    try:
        yield
    finally:
        restore_rng(before)

"""Random generators: the state of all that training draws from, kept and put back.

Of the GPUs only the current one counts, which is the one that is trained on: a run may go on where more or fewer cards
are visible than before.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The state of every random generator that training draws from; tensors and plain values only."""
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
    # Asked of a GPU that is in use alone, as a run on the CPU would take memory of it otherwise.
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [torch.cuda.get_rng_state()]
    return state


def seed_unused(seed: int) -> None:
    """Seed the generators of Python and NumPy, which checkpoints hold and nothing in training draws from, so that equal
    runs have equal checkpoints. Torch's is seeded where it is first drawn from.

    Args:
        seed: Of the run.
    """
    random.seed(seed)
    np.random.seed(seed % (1 << 32))


def restore_rng(state: dict[str, Any]) -> None:
    """Put :func:`rng_state` back, where it was made with as many cards or not."""
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
    """Inside, torch draws from numbers that belong to one process and one step, as dropout must differ between the
    processes of a run; afterwards it goes on as if nothing had been drawn, so that all of them, and the checkpoints,
    have the same state.

    Args:
        seed: Of the run.
        step: Steps done.
        rank: Number of the process.
    """
    before = rng_state()
    digest = hashlib.blake2b(f"{seed}:{step}:{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
    try:
        yield
    finally:
        restore_rng(before)

"""Random generators: saving and restoring the state of all that training draws from.

Only the current GPU counts, because a run may be resumed with more or fewer visible cards.
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

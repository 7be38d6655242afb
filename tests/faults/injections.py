"""Faults inside a forked worker: functions of libraries that fail, or do not return, at a given step.

A test names one in the environment of the worker that it starts: ``LOCALTUNE_TEST_FAULT=lost_gpu:8``. The code under
test knows nothing of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What a card that has fallen off the bus makes of the next call, in torch's words.
LOST_GPU = (
    "CUDA error: unspecified launch failure\n"
    "CUDA kernel errors might be asynchronously reported at some other API call."
)
#: Until the file that it names is there, :func:`hang_in_rows` does not return.
RELEASE_VARIABLE = "LOCALTUNE_TEST_RELEASE"


def inject(fault: str) -> None:
    """Put a fault in: its name and a step."""
    name, _, step = fault.partition(":")
    FAULTS[name](int(step))


def lost_gpu(step: int) -> None:
    """A backward pass that fails as on a card that is gone."""
    import torch

    backward, done = torch.Tensor.backward, 0

    def failing(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        nonlocal done
        backward(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        done += 1
        if done >= step:
            raise torch.AcceleratorError(LOST_GPU)

    torch.Tensor.backward = failing  # type: ignore[method-assign,assignment]


def hang_in_rows(step: int) -> None:
    """Padding of rows that does not return; any step counts as long that takes ten times more than the others."""
    from core.worker.data import batches
    from core.worker.process import step_watchdog

    step_watchdog.LONG_SECONDS = 0.0
    pad, done = batches.pad, 0

    def hanging(rows: Any, pad_id: int) -> Any:
        nonlocal done
        done += 1
        while done == step and not Path(os.environ[RELEASE_VARIABLE]).exists():
            time.sleep(0.01)
        return pad(rows, pad_id)

    batches.pad = hanging


FAULTS: dict[str, Callable[[int], None]] = {"lost_gpu": lost_gpu, "hang_in_rows": hang_in_rows}

"""Two processes that meet, forked from this one; each runs a function of its ranks."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from core.models.architecture import measuring
from core.worker.distributed.ranks import Ranks, join
from core.worker.distributed.rendezvous import Meeting, file_meeting
from core.worker.process.openmp import renew_thread_pool
from tests.measured_here import run_here

needs_fsdp2 = pytest.mark.skipif(
    not hasattr(FSDPModule, "reset_iter_state"),
    reason=f"fsdp2 needs torch 2.13 or newer, and this is {torch.__version__}",
)

#: Seconds for the first to come to an end, and then for the others.
PATIENCE, OTHERS = 120.0, 3.0

# Autograd starts a thread for each device with the first backward pass of a process, and after that no forked process
# can compute gradients. Without a card there is no device, unless a FakeTensorMode has pretended one before, which it
# does where torch is built for CUDA.
torch.ones(1, requires_grad=True).backward()  # type: ignore[no-untyped-call]


def run_pair(
    directory: Path,
    work: Callable[[Ranks], Any],
    *,
    count: int = 2,
    timeout: float = 60.0,
    patience: float = PATIENCE,
    place: str = "",
) -> list[Any]:
    """Run a function in several processes. Returns each result, or the text of the exception.

    Args:
        directory: Where they meet.
        work: Done by each.
        count: How many there are.
        timeout: Seconds that each waits for the others.
        patience: Seconds for the first to come to an end.
        place: Where they meet, if not over a file of the directory.
    """
    place = place or file_meeting(directory / "meeting")
    context = multiprocessing.get_context("fork")
    started = []
    for rank in range(count):
        reading, writing = context.Pipe(duplex=False)
        process = context.Process(target=_be, args=(Meeting(rank, count, rank, place), work, timeout, writing))
        process.start()
        writing.close()
        started.append((process, reading))
    found: list[Any] = []
    for process, reading in started:
        try:
            found.append(reading.recv() if reading.poll(OTHERS if found else patience) else "hangs")
        except EOFError:
            found.append("gone")
        process.kill()
        process.join()
    return found


def _be(meeting: Meeting, work: Callable[[Ranks], Any], timeout: float, answer: Connection) -> None:
    meeting.keep_inside(os.environ)
    renew_thread_pool()
    # Helpers of the tests are children of the process that was forked.
    measuring._run = run_here
    try:
        result = work(join(meeting, timeout, cuda=False))
    except BaseException as error:
        traceback.print_exc()
        result = f"{type(error).__name__}: {error}"
    answer.send(result)
    answer.close()
    os._exit(0)

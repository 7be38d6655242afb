"""The signs of life of the processes of a run, for those who look at it (:mod:`core.runs.record.state`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from core.runs.record.state import Rank, write_ranks
from core.runs.record.store import Run
from core.worker.supervise.verdict import Sign

#: Seconds between two records.
_SECONDS = 2.0


class RankSigns:
    """The record of the processes, replaced every few seconds.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._written = float("-inf")

    def keep(self, signs: Sequence[Sign]) -> None:
        """Write it, if it is time; a disk that takes nothing costs only what is shown."""
        if time.monotonic() - self._written < _SECONDS:
            return
        self._written, now = time.monotonic(), time.time()
        ranks = [
            Rank(
                rank=sign.rank,
                host=sign.host,
                pid=sign.pid,
                device=sign.device,
                heard=now - sign.silent,
                is_waiting=sign.is_waiting,
            )
            for sign in signs
        ]
        with suppress(OSError):
            write_ranks(self._run.path, ranks)

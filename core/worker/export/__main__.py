"""The process of an export: ``python -m core.worker.export``.

It reads one request as a line of JSON from standard input (:class:`core.export.request.ExportRequest`), and writes
lines of JSON: ``{"progress": {"activity", "done", "total"}}`` as it goes on, and ``{"result"}`` or ``{"error",
"hint"}`` at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

from core.errors import UserError
from core.export.request import ExportRequest
from core.helper import tie_to_parent
from core.worker.process import environment
from core.worker.process.log import log_exception

#: Seconds between two reports of progress.
_INTERVAL = 0.2


class _Answers:
    """Writes messages, progress at a limited rate.

    Args:
        stream: Where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0.0
        self._activity = ""

    def progress(self, activity: str, done: int | None, total: int | None) -> None:
        """Report progress."""
        now = time.monotonic()
        if now >= self._next or activity != self._activity:
            self._next, self._activity = now + _INTERVAL, activity
            self.send({"progress": {"activity": activity, "done": done, "total": total}})

    def send(self, message: dict[str, Any]) -> None:
        """Write a message as one line."""
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()


def main(answers: _Answers, line: str) -> None:
    """Make the export that is asked for, and say what came of it."""
    try:
        request = ExportRequest.from_dict(json.loads(line))
        answers.progress("importing the libraries", None, None)
        # Once the environment is prepared.
        from core.worker.export.export import Export

        answers.send({"result": Export(request, answers.progress).make().to_dict()})
    except UserError as error:
        answers.send({"error": error.message, "hint": error.hint})
    except MemoryError:
        answers.send({"error": "The export needs more memory than there is.", "hint": "Close other programs."})
    except Exception as error:  # of whatever library: it costs this export
        log_exception()
        first = (str(error).splitlines() or [""])[0]
        answers.send({"error": f"The export failed: {type(error).__name__}: {first}", "hint": "Please report it."})


if __name__ == "__main__":
    tie_to_parent()
    # What libraries print must not come between the messages.
    private = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    environment.prepare()
    main(_Answers(private), sys.stdin.readline())

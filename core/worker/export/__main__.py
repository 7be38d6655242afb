"""The process of an export: ``python -m core.worker.export``.

It reads one request as a line of JSON from standard input (:class:`core.export.request.ExportRequest`), and writes
lines of JSON: ``{"progress": {"activity", "done", "total"}}`` as it goes on, and ``{"result"}`` or ``{"error",
"hint"}`` at the end.
"""

from __future__ import annotations

import json
import sys

from core.errors import UserError
from core.export.request import ExportRequest
from core.helper import private_output, tie_to_parent
from core.worker.process import environment
from core.worker.process.answers import Answers
from core.worker.process.log import log_exception


def main(answers: Answers, line: str) -> None:
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
    answers = Answers(private_output())
    environment.prepare()
    main(answers, sys.stdin.readline())

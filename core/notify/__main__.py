"""The process that sends one notice: ``python -m core.notify '["finished", "why", "run"]'``."""

from __future__ import annotations

import json
import sys

from core.errors import UserError
from core.notify.send import Notice, load_notify_settings, send


def main(argv: list[str] | None = None) -> int:
    """Send the notice; returns 1 after an error, which is printed."""
    state, reason, run = json.loads((sys.argv[1:] if argv is None else argv)[0])
    try:
        problems = send(Notice(str(state), str(reason), str(run)), load_notify_settings())
    except UserError as error:
        problems = [str(error)]
    for problem in problems:
        sys.stderr.write(f"notice not sent: {problem}\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())

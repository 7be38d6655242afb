"""The server as a helper of the app: ``python -m core.serve`` ends when the app does.

It reads one JSON object, the options, from standard input, and writes JSON lines: ``{"ready": …}`` once clients can
connect, ``{"progress": …}``, and ``{"error", "hint"}`` if it cannot serve.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from typing import Any

from core.errors import UserError
from core.helper import private_output, tie_to_parent


def main() -> None:
    """Read the options, and serve until the end."""
    tie_to_parent()
    answers = private_output()

    def tell(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode("ascii") + b"\n")
        answers.flush()

    try:
        from core.serve.options import KEY_VARIABLE, ServeOptions, ServerAddress, check_installed, open_listener

        check_installed()
        from core.serve.server import serve

        given = json.loads(sys.stdin.buffer.readline())
        key = os.environ.get(KEY_VARIABLE, "")
        options = ServeOptions(tuple(given["targets"]), port=given["port"], key=key)
        try:
            open_listener(options).close()
        except UserError:
            # Another program has it, perhaps another app: any port will do, as it is shown.
            options = replace(options, port=0)

        def ready(address: ServerAddress) -> None:
            tell({"ready": asdict(address)})

        def progress(detail: str, done: int | None, total: int | None) -> None:
            tell({"progress": detail, "done": done, "total": total})

        serve(options, ready, progress)
    except UserError as error:
        tell({"error": error.message, "hint": error.hint})
        sys.exit(1)


if __name__ == "__main__":
    main()

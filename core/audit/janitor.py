"""The janitor of an audit: ``python -m core.audit.janitor DIRECTORY`` removes a directory when its starter is gone.

It has a session of its own and waits for the end of its standard input, whose other end only the audit holds. However
the audit ends, by SIGKILL too, nothing of its copies is left.
"""

from __future__ import annotations

import shutil
import sys
import time

#: Seconds in which processes that end with the audit may still write.
_PATIENCE = 10.0


def main(directory: str) -> None:
    """Wait, and remove."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)  # a process that is about to end has written into it


if __name__ == "__main__":
    main(sys.argv[1])

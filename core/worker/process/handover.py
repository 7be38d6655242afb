"""Another program in the place of this one, in the same process: pid, start time and lock stay, all memory goes.

Whoever watches the run sees one worker. The memory of the device goes with the program that held it, the context of
its driver too, which no library can give back while its process lives.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from core.runs.record.files import LOCK_VARIABLE
from core.worker.process.log import log

#: Descriptors of standard input, output and error, which stay.
_STANDARD = 3


def become(arguments: Sequence[str], lock: int, environment: Mapping[str, str]) -> NoReturn:
    """Run ``python -m core.worker`` anew in this process.

    Args:
        arguments: Of the worker.
        lock: Descriptor of the worker lock, which the next program adopts.
        environment: Of this program as it was started, without what libraries have been told since.

    Raises:
        OSError: If the program cannot be started.
    """
    log(f"== worker started anew: {' '.join(arguments[1:])}")
    sys.stdout.flush()
    sys.stderr.flush()
    # A driver may have opened its device so that a next program inherits it, and with it the memory.
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself is closed
            if int(name) >= _STANDARD:
                os.set_inheritable(int(name), False)
    os.set_inheritable(lock, True)
    command = [sys.executable, "-m", "core.worker", *arguments]
    os.execve(  # noqa: S606 - a list of our own arguments
        sys.executable, command, {**environment, LOCK_VARIABLE: str(lock)}
    )

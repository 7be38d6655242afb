"""Reports of a process to its supervisor, as lines of JSON in a pipe: heartbeats, and the reason of an end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from core.worker.process.step_watchdog import place_of

#: Environment variables with the pipe's descriptor, and the supervisor's pid.
REPORTS, SUPERVISOR = "LOCALTUNE_REPORTS", "LOCALTUNE_SUPERVISOR"
#: Seconds between two heartbeats.
BEAT_SECONDS = 1.0
#: ``prctl`` option: signal for this process when its parent ends.
_PDEATHSIG = 1


class Reports:
    """Reports and heartbeats of a process to its supervisor.

    Args:
        descriptor: Descriptor of the pipe; None without a supervisor.
        supervisor: The supervisor's pid.
    """

    def __init__(self, descriptor: int | None, supervisor: int | None) -> None:
        self._descriptor = descriptor
        self._guard = threading.Lock()
        self.supervisor = supervisor
        self.signs: Callable[[], dict[str, Any]] = lambda: {"waiting": False}
        """Fields of a heartbeat: ``waiting``, True if the process waits for the others; ``wait``, the number of that
        wait; ``pulse``, see :class:`core.worker.process.pulse.Pulse`."""
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            threading.Thread(target=self._beat, name="reports", daemon=True).start()

    def tell(self, **fields: Any) -> None:
        """Send a report.

        Args:
            **fields: ``error`` and ``hint``: reason of an end; ``following``: options the run continues with; ``host``,
                ``pid`` and ``device``: place of the process.
        """
        if self._descriptor is None:
            return
        line = json.dumps(fields).encode("utf-8") + b"\n"
        # If the supervisor is gone, this process is about to be killed as well.
        with self._guard, contextlib.suppress(OSError):
            os.write(self._descriptor, line)

    def _beat(self) -> None:
        before: Any = None
        while True:
            signs = self.signs()
            pulse = signs.get("pulse")
            at = place_of(threading.main_thread()) if pulse is not None and pulse == before else ""
            before = pulse
            self.tell(**signs, at=at)
            time.sleep(BEAT_SECONDS)


def report_to_supervisor() -> Reports:
    """Reports of this process, which ends with its supervisor from now on; silent without one."""
    number, supervisor = os.environ.pop(REPORTS, ""), os.environ.pop(SUPERVISOR, "")
    if not number or not supervisor:
        return Reports(None, None)
    # The kernel kills it even if it is suspended or deep in a driver.
    ctypes.CDLL(None, use_errno=True).prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(supervisor):
        os._exit(1)  # the supervisor has ended before
    return Reports(int(number), int(supervisor))

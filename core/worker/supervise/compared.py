"""The machines of a run compared before its processes start; and the heartbeat of a run that has none yet."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from core.config.schema import Config
from core.errors import UserError
from core.launch.nodes.compare import compare_machines
from core.runs.record.events import PhaseEvent
from core.runs.record.files import append_events
from core.runs.record.state import RunState, hostname, own_identity
from core.runs.record.store import Run
from core.worker.process.log import log

#: Seconds between two heartbeats.
_BEAT_SECONDS = 2.0


def compare_for(run: Run, config: Config) -> None:
    """Compare the machines of a run. Hashing a large model for the first time takes minutes.

    Raises:
        UserError: If one differs, or cannot be reached.
    """
    pid, identity = own_identity()
    state = RunState.read(run.state_path) or RunState(state="queued")
    state = dataclasses.replace(state, state="starting", pid=pid, pid_started=identity, host=hostname())
    with suppress(UserError):
        append_events(run, PhaseEvent(name="importing", detail="comparing the machines"))
    with seen_to_live(run, state):
        compare_machines(config, log)


@contextlib.contextmanager
def seen_to_live(run: Run, state: RunState) -> Iterator[None]:
    """Inside, the state of a run is written with a heartbeat.

    Args:
        run: The run.
        state: The state.
    """
    done = threading.Event()

    def beat() -> None:
        while True:
            with suppress(OSError):
                dataclasses.replace(state, updated=time.time(), beat=time.monotonic()).write(run.state_path)
            if done.wait(_BEAT_SECONDS):
                return

    heart = threading.Thread(target=beat, name="heartbeat", daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()

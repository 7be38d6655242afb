"""A machine with little free memory on whose CPU a run trains: engines of the chat that are started there.

``python -m tests.core.worker.crowded MODULE FILE`` is such an engine.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from core.chat.engine import ChatEngine
from core.config.schema import Config, DataSection, HardwareSection
from core.hardware import cpu
from core.runs.record.state import RunState, hostname, own_identity
from core.runs.record.store import Run, create_run


def crowded_engine(module: str, free: Path, *files: Path) -> ChatEngine:
    """An engine in a process that finds as many bytes free as a file says.

    Args:
        module: The module with the engine's ``main``.
        free: The file, which is read each time.
        *files: Files that the engine is confined to.
    """
    return ChatEngine([sys.executable, "-m", __name__, module, str(free)], list(map(str, files)))


def run_on_cpu() -> Run:
    """A run of this home that trains on the CPU, in this process."""
    config = Config(data=DataSection(train="rows.jsonl"), hardware=HardwareSection(device="cpu"))
    run = create_run(config, "tickets")
    pid, identity = own_identity()
    state = RunState(state="training", pid=pid, pid_started=identity, host=hostname(), updated=time.time())
    state.write(run.state_path)
    return run


def end_run(run: Run) -> None:
    """End such a run."""
    RunState(state="finished", updated=time.time()).write(run.state_path)


def _memory(cgroup: Path = Path()) -> tuple[int, int]:
    """As :func:`core.hardware.cpu.memory`, by the file."""
    return 0, int(Path(sys.argv[2]).read_text())


if __name__ == "__main__":
    cpu.memory = _memory
    importlib.import_module(sys.argv[1]).main()

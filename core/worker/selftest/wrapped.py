"""Wrapped workers: ``measured RUN`` records its process's memory, ``starved RUN`` meets a shortage, ``counted RUN``
records the waits of a step.

All execute the run by the worker's own entry point.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from core.atomic import write_atomic
from core.hardware import cpu
from core.helper import tie_to_parent

MEASURED = "measured.json"
#: Variable with the driver's index of a measured worker's card.
CARD_VARIABLE = "LOCALTUNE_SELFTEST_CARD"


@dataclass(frozen=True)
class Footprint:
    """Memory of a worker's process besides its tensors.

    Args:
        runtime_bytes: On a card its context, libraries and their workspaces, on a CPU the interpreter with its
            libraries; None where unknown.
        allocated_bytes: Peak of the tensors on a card; None on a CPU.
        reserved_bytes: Peak of the allocator's memory for them.
        torch: Version of torch.
    """

    runtime_bytes: int | None
    allocated_bytes: int | None
    reserved_bytes: int | None
    torch: str

    @classmethod
    def read(cls, run: Path) -> Footprint | None:
        """The record of a measured worker in its run directory; None for none."""
        try:
            data = json.loads((run / MEASURED).read_text(encoding="utf-8"))
            return cls(**data)
        except (OSError, ValueError, TypeError):
            return None


def measured(run: str) -> int:
    """Execute a run, and write a :class:`Footprint` into its directory; returns the worker's exit code."""
    from core.worker.__main__ import main
    from core.worker.libraries import import_libraries
    from core.worker.process import environment

    environment.prepare()
    free_before = _free_memory()
    import_libraries()
    interpreter = cpu.process_rss(os.getpid())
    code = main([run])
    import torch

    footprint = Footprint(interpreter, None, None, torch.__version__)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        stats = torch.cuda.memory_stats()
        free_after = _free_memory()
        taken = None
        if free_before is not None and free_after is not None:
            taken = free_before - free_after - int(stats["reserved_bytes.all.current"])
        footprint = Footprint(
            taken,
            int(stats["allocated_bytes.all.peak"]),
            int(stats["reserved_bytes.all.peak"]),
            torch.__version__,
        )
    write_atomic(Path(run) / MEASURED, json.dumps(asdict(footprint)))
    return code


def _free_memory() -> int | None:
    """Free memory of the used card by its driver; None without one."""
    from core.worker.selftest.driver import free_memory

    number = os.environ.get(CARD_VARIABLE, "")
    return free_memory(int(number)) if number.isdecimal() else None


def starved(run: str) -> int:
    """Execute a run in which memory runs out in the forward pass of one step and the backward pass of another."""
    from core.worker.__main__ import main
    from core.worker.process import environment

    environment.prepare()
    from core.worker.selftest.ballast import Shortage

    with Shortage(Path(run)).installed():
        return main([run])


def counted(run: str) -> int:
    """Execute a run, and write the waits of one of its steps into its directory."""
    from core.worker.__main__ import main
    from core.worker.process import environment

    environment.prepare()
    from core.worker.selftest.waits import WaitCounter

    with WaitCounter(Path(run)).installed():
        return main([run])


if __name__ == "__main__":
    tie_to_parent()
    sys.exit({"measured": measured, "starved": starved, "counted": counted}[sys.argv[1]](sys.argv[2]))

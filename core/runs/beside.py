"""Runs that train on the same device: what a second model beside them may cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from core.errors import UserError
from core.hardware.card import ask_driver
from core.hardware.nvml import Nvml, NvmlUnavailableError
from core.hardware.wsl import is_wsl
from core.runs.process import hostname
from core.runs.store import list_runs
from core.units import format_bytes

#: Size of a model in 4 bits by that of its weights in 16: the embeddings stay as they are.
_QUANTIZED = 0.35


def model_bytes(files: int, method: str) -> int:
    """The memory that a model takes at least, by the size of its weight files, in 16 bits.

    Args:
        files: Bytes of the files.
        method: ``qlora`` loads it in 4 bits.
    """
    return int(files * _QUANTIZED) if method == "qlora" else files


def refuse_crowding(needed: int, free: int, runs: Callable[[], Sequence[str]], what: str = "the model") -> None:
    """Check that something fits beside the runs on the same device, before the memory for it is taken.

    Without a run nobody is harmed: what does not fit is told when memory runs out.

    Args:
        needed: Bytes that it takes.
        free: Bytes that are free on the device.
        runs: Finds the runs that train there; called only where it does not fit, as that takes a while.
        what: What it is, for the sentence.

    Raises:
        UserError: If a run trains there, and it does not fit.
    """
    if needed > free and (found := runs()):
        raise UserError(
            f"Run {found[0]} trains on the same device, where {format_bytes(free)} are free, and {what} takes about "
            f"{format_bytes(needed)}.",
            "Ask the model in training instead, or wait until the run is over.",
        )


def runs_on_card(uuid: str) -> list[str]:
    """The runs of this home that train on a card.

    Args:
        uuid: Its UUID.
    """
    pids = ask_driver(lambda: _processes(uuid)) or set()
    return _runs_of(None if is_wsl() else pids)


def runs_on_cpu() -> list[str]:
    """The runs of this home that train on this machine's CPU."""
    return _runs_of(None, on_cpu=True)


def _processes(uuid: str) -> set[int]:
    try:
        nvml = Nvml()
    except NvmlUnavailableError:
        return set()
    try:
        indices = [card.index for card in nvml.identities() if uuid in (card.uuid, *card.instances)]
        return {process.pid for index in indices for process in nvml.processes(index)}
    finally:
        nvml.close()


def _runs_of(pids: Collection[int] | None, *, on_cpu: bool = False) -> list[str]:
    """The runs with one of the processes; None: all that may be on the device, as Windows lists no processes."""
    found = []
    for run in list_runs():
        state = run.state()
        if state.is_over or state.pid is None or state.host != hostname():
            continue
        on_device = state.pid in pids if pids is not None else False
        with suppress(UserError):
            unwanted = "cuda" if on_cpu else "cpu"
            on_device = on_device or (pids is None and run.config().hardware.device != unwanted)
        if on_device:
            found.append(run.id)
    return found

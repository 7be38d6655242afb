"""Devices of this machine that a worker holds while it trains (:mod:`core.runs.control.devices`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.config.schema import Config
from core.errors import UserError
from core.runs.control.devices import Hold, is_alone, occupant, run_devices, take_alone, take_beside
from core.runs.record.events import NoticeEvent
from core.runs.record.store import Run


def hold_devices(run: Run) -> Hold | str:
    """Hold the devices of a run; before anything is loaded.

    Args:
        run: The run.

    Returns:
        What is held, to be kept while it trains; or, where it has to wait for a device of its own, for what: the end of
        a sentence.
    """
    try:
        devices = run_devices(run.config())
    except UserError:
        return Hold()  # the worker meets the same error, and records it
    if not is_alone():
        return take_beside(devices, run.id)
    return take_alone(devices, run.id) or _wait_words(occupant(devices, run.id) or "another run")


def reason_to_wait(run: Run) -> Callable[[], str | None]:
    """What tells for what a parked run waits that is to have its devices to itself, as the end of a sentence. It
    tells None where they are free, and for all other runs.

    Args:
        run: The run.
    """
    if not is_alone():
        return lambda: None
    try:
        devices = run_devices(run.config())
    except UserError:
        return lambda: None  # it goes on, and records what is wrong

    def look() -> str | None:
        found = occupant(devices, run.id)
        return None if found is None else _wait_words(found)

    return look


def own_device(config: Config, number: int) -> str:
    """The device of one of the processes of a run on this machine.

    Args:
        config: Of the run.
        number: Of the process on this machine.

    Raises:
        UserError: If a card that it names is not there.
    """
    devices = run_devices(config)
    return devices[min(number, len(devices) - 1)]


def shared_device(run_ids: Sequence[str], place: str = "") -> NoticeEvent:
    """The warning of a run that was started beside others.

    Args:
        run_ids: The others, one at least.
        place: The process of the run whose device it is, for a run of several: ``Process 1 on tower``.
    """
    runs = f"Run {run_ids[0]} is" if len(run_ids) == 1 else f"Runs {', '.join(run_ids[:-1])} and {run_ids[-1]} are"
    slower = "both get" if len(run_ids) == 1 else "all get"
    message = f"{runs} on the same device: {slower} slower, and their memory adds up."
    return NoticeEvent(
        level="warning",
        code="shared_device",
        message=f"{place}: {message}" if place else message,
        hint="To have runs one after the other, put them into the queue: localtune-tui queue add.",
    )


def _wait_words(name: str) -> str:
    return f"{name} has the device"

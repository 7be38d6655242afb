"""Device locks of a worker (:mod:`core.runs.control.devices`), and explanations of GPU failures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

from core.config.schema import Config
from core.errors import UserError
from core.hardware.snapshot import Device, explain_xid
from core.jobs.job import subject
from core.runs.control.devices import Hold, is_alone, occupant, run_devices, take_alone, take_beside
from core.runs.record.events import NoticeEvent
from core.runs.record.store import Run
from core.text import one_line


def hold_devices(run: Run) -> Hold | str:
    """Lock the devices of a run, before anything is loaded.

    Args:
        run: The run.

    Returns:
        The locks, to be kept while it trains; or the reason to wait for an exclusive device, as the end of a sentence.
    """
    try:
        devices = run_devices(run.config())
    except UserError:
        return Hold()  # the worker meets the same error, and records it
    if not is_alone():
        return take_beside(devices, run.id)
    return take_alone(devices, run.id) or _wait_words(occupant(devices, run.id) or "another run")


def reason_to_wait(run: Run) -> Callable[[], str | None]:
    """Function that returns the reason why a parked run waits for exclusive devices, as the end of a sentence. It
    returns None if they are free, and for runs that share devices.

    Args:
        run: The run.
    """
    if not is_alone():
        return lambda: None
    try:
        devices = run_devices(run.config())
    except UserError:
        return lambda: None  # it continues, and records the error

    def look() -> str | None:
        found = occupant(devices, run.id)
        return None if found is None else _wait_words(found)

    return look


def own_device(config: Config, number: int) -> str:
    """Device of one of a run's processes on this machine.

    Args:
        config: Of the run.
        number: Local rank of the process.

    Raises:
        UserError: If a configured card does not exist.
    """
    devices = run_devices(config)
    return devices[min(number, len(devices) - 1)]


def shared_device(run_ids: Sequence[str], place: str = "") -> NoticeEvent:
    """Warning of a run started beside others.

    Args:
        run_ids: The other runs, at least one.
        place: The process on the shared device, in a run of several: ``Process 1 on tower``.
    """
    first = run_ids[0]
    # The queue's runner holds a device as "the index of RUN".
    one = subject(first) if first.startswith("the ") else f"Run {first}"
    runs = f"{one} is" if len(run_ids) == 1 else f"Runs {', '.join(run_ids[:-1])} and {run_ids[-1]} are"
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


#: Maximum age in seconds of a driver error that may be the cause of torch's.
_CAUSE_SECONDS = 120.0
_REACHED = (
    "Reboot before you train on this card again; if it comes back, check its power cables, its seating and its cooling."
)
_MEMORY = "Reset the card or reboot; if it comes back, have the card's memory tested."
_PROGRAM = "If it comes back, take back any overclocking, update the driver and torch, and report it."
_OTHER = "Look for 'Xid' in 'sudo dmesg'."
#: Patterns of driver errors passed on by torch, with a description and advice.
_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        r"GPU is lost|no CUDA-capable device|no (HIP|ROCm)-capable device|devices? .*(busy or )?unavailable"
        r"|driver shutting down|system not yet initialized",
        "the card cannot be reached any more",
        _REACHED,
    ),
    (r"ECC error|hardware stack error", "the card's memory or processors have failed", _MEMORY),
    (
        r"unspecified launch failure|illegal memory access|misaligned address|illegal instruction"
        r"|device-side assert|invalid program counter|launch timed out",
        "the card has stopped at an error",
        _PROGRAM,
    ),
)
_SIGN = re.compile(r"(CUDA|HIP) (driver )?error|CU[A-Z]+_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)|NCCL error")


def device_failure(error: BaseException, step: int, device: Device | None) -> UserError | None:
    """A failure of the GPU as a user error; None for any other error.

    Args:
        error: Error that ended the run; running out of memory is handled before.
        step: Optimizer steps done.
        device: Last snapshot of the run's device.
    """
    # By name: torch may not be imported yet.
    is_failure = type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError) and _SIGN.search(str(error)) is not None
    )
    if not is_failure:
        return None
    said = one_line((str(error).splitlines() or [""])[0], 160).rstrip(".")
    words, hint = _explain(str(error))
    message = f"The GPU failed in step {step + 1}: {words} ({said})."
    recent = [xid for xid in (device.xid if device is not None else ()) if time.time() - xid.t <= _CAUSE_SECONDS]
    if recent:
        code = max(recent, key=lambda xid: xid.t).code
        meaning = explain_xid(code)
        return UserError(f"{message} The driver reports Xid {code}: {meaning.words}.", meaning.hint)
    return UserError(message, hint)


def _explain(text: str) -> tuple[str, str]:
    for pattern, words, hint in _KINDS:
        if re.search(pattern, text, re.IGNORECASE):
            return words, hint
    return "the driver reports an error", _OTHER

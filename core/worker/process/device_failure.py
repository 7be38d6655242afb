"""Failures of a GPU in the middle of a run: what torch raises, in words, with what the driver says of it.

After such an error nothing can be computed on the card by this process any more, whatever is tried.
"""

from __future__ import annotations

import re
import time

from core.errors import UserError
from core.hardware.snapshot import Device
from core.hardware.xid import explain_xid
from core.text import one_line

#: Seconds for which an error that the driver has reported may be the cause of what torch raises.
_CAUSE_SECONDS = 120.0
_REACHED = (
    "Reboot before you train on this card again; if it comes back, check its power cables, its seating and its cooling."
)
_MEMORY = "Reset the card or reboot; if it comes back, have the card's memory tested."
_PROGRAM = "If it comes back, take back any overclocking, update the driver and torch, and report it."
_OTHER = "Look for 'Xid' in 'sudo dmesg'."
#: What torch passes on from the driver's interface, and what helps.
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
    """A failure of the GPU as a sentence; None for any other error.

    Args:
        error: What ended the run; running out of memory has been told before.
        step: Optimizer steps done.
        device: The run's device as its meters last showed it.
    """
    # By name: torch is not imported where a run ends before it needs it.
    is_failure = type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError) and _SIGN.search(str(error)) is not None
    )
    if not is_failure:
        return None
    said = one_line((str(error).splitlines() or [""])[0], 160).rstrip(".")
    words, hint = _explain(str(error))
    message = f"The GPU failed in step {step + 1}: {words} ({said})."
    if (code := _newest_xid(device)) is not None:
        meaning = explain_xid(code)
        return UserError(f"{message} The driver reports Xid {code}: {meaning.words}.", meaning.hint)
    return UserError(message, hint)


def _explain(text: str) -> tuple[str, str]:
    for pattern, words, hint in _KINDS:
        if re.search(pattern, text, re.IGNORECASE):
            return words, hint
    return "the driver reports an error", _OTHER


def _newest_xid(device: Device | None) -> int | None:
    recent = [xid for xid in (device.xid if device is not None else ()) if time.time() - xid.t <= _CAUSE_SECONDS]
    return max(recent, key=lambda xid: xid.t).code if recent else None

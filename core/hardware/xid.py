"""Xid errors of NVIDIA's driver, in words.

Source: NVIDIA, *Xid Errors* (docs.nvidia.com/deploy/xid-errors): numbers keep their meaning in all drivers, and may
have several causes.
"""

from __future__ import annotations

from dataclasses import dataclass

_REBOOT = "Stop the run, and reboot before you train on this card again."
_MEMORY = "Reset the card or reboot; if it comes back, have the card's memory tested."
_PROGRAM = (
    "A single one that a run survives can be left alone; if it comes back without other programs, update the driver."
)


@dataclass(frozen=True)
class XidMeaning:
    """Meaning of an Xid, an error code of NVIDIA's driver.

    Args:
        words: The end of a sentence: "GPU 0 reports Xid 79: …".
        hint: The remedy.
        level: ``info``, ``warning`` or ``error``, as of a notice.
    """

    words: str
    hint: str
    level: str = "warning"


_MEANINGS: dict[int, XidMeaning] = {
    8: XidMeaning("the card has stopped working on something and was stopped itself", _REBOOT, "error"),
    13: XidMeaning("a program did something that the card's processors do not allow, in a kernel of its own", _PROGRAM),
    31: XidMeaning("a program reached for memory of the card that is not its own", _PROGRAM),
    32: XidMeaning("commands came damaged to the card", "Check its seating and its riser; update the driver."),
    38: XidMeaning("the driver's firmware has failed", _REBOOT, "error"),
    43: XidMeaning("a program's channel was stopped after an error of its own; the card itself is well", _PROGRAM),
    45: XidMeaning(
        "work of a program was thrown away, as happens when it is killed or after another error", _PROGRAM, "info"
    ),
    48: XidMeaning("two bits of the card's memory were wrong at once, which cannot be corrected", _MEMORY, "error"),
    61: XidMeaning("the card's own controller has stopped at an internal error", _REBOOT, "error"),
    62: XidMeaning("the card's own controller has halted", _REBOOT, "error"),
    63: XidMeaning(
        "a bad place of the card's memory was noted, to be replaced by a spare one",
        "Reboot when it suits you: the spare is used from then on.",
    ),
    64: XidMeaning("a bad place of the card's memory could not be noted for replacement", _MEMORY, "error"),
    69: XidMeaning("a program did something that the card's processors do not allow", _PROGRAM),
    74: XidMeaning("the NVLink between cards has failed", "Check the bridge and its seating, then reboot.", "error"),
    79: XidMeaning(
        "the card has fallen off the bus: the system cannot reach it any more",
        "Reboot; if it comes back, check its power cables, its seating and its cooling.",
        "error",
    ),
    92: XidMeaning("single bits of the card's memory are wrong often; they were corrected", _MEMORY),
    94: XidMeaning(
        "memory that cannot be corrected was met, and only the program that used it is hurt", _MEMORY, "error"
    ),
    95: XidMeaning(
        "memory that cannot be corrected was met, and any program on the card may be hurt", _MEMORY, "error"
    ),
    109: XidMeaning("the card took too long to switch between programs", _REBOOT, "error"),
    119: XidMeaning("the card's system processor (GSP) does not answer the driver", _REBOOT, "error"),
    120: XidMeaning("the card's system processor (GSP) has failed", _REBOOT, "error"),
    154: XidMeaning(
        "the driver says that the card needs something before it can go on, a reset as a rule", _REBOOT, "error"
    ),
}
_UNKNOWN = XidMeaning(
    "an error that this program has no words for",
    "NVIDIA's list is at docs.nvidia.com/deploy/xid-errors; 'sudo dmesg' has the line of the driver.",
)


def explain_xid(code: int) -> XidMeaning:
    """The meaning of an Xid, or of an unknown one."""
    return _MEANINGS.get(code, _UNKNOWN)

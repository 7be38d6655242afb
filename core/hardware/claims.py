"""Claims of others on the device of a run, which then gives it back (``parking``): running programs, reserved hours,
and memory of the card in use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from core.config.clock import parse_span
from core.config.schema import ParkingSection
from core.hardware.snapshot import Device
from core.text import one_line
from core.units import format_bytes


@dataclass(frozen=True)
class Claim:
    """A claim.

    Args:
        sender: Its origin, after "by": ``another program``.
        cause: The reason, as the end of a sentence: ``ollama is running``.
    """

    sender: str
    cause: str


def has_conditions(parking: ParkingSection) -> bool:
    """True if any condition gives the device back automatically."""
    return bool(parking.names or parking.spans or parking.memory_gb)


def find_claim(parking: ParkingSection, now: float, device: Device | None) -> Claim | None:
    """The first claim that holds.

    Args:
        parking: The conditions.
        now: Unix seconds.
        device: The device of the run; None if unknown.
    """
    for text in parking.spans:
        if parse_span(text).contains(now):
            return Claim(
                "the schedule",
                f"from {' to '.join(part.strip() for part in text.split('-'))} the device is not the run's",
            )
    if parking.names and (name := running_program(parking.names, commands())) is not None:
        return Claim("another program", f"{one_line(name, 80)} is running")
    if (
        parking.memory_gb is not None
        and device is not None
        and (held := others_bytes(device)) >= parking.memory_gb * 1e9
    ):
        return Claim("another program", f"other programs hold {format_bytes(held)} of the card")
    return None


def others_bytes(device: Device) -> int:
    """Bytes of a device's memory that other processes hold, as far as the driver reports them."""
    own = os.getpid()
    return sum(process.memory or 0 for process in device.processes if process.pid != own)


def commands() -> Iterator[Sequence[str]]:
    """Command lines of the other running processes, program first without its directory; the kernel's name of the
    process if the command line cannot be read."""
    own = os.getpid()
    for process in psutil.process_iter():
        try:
            if process.pid == own or process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = process.cmdline()
            # A process may write over its command line; then it is one word with blanks.
            yield [os.path.basename(words[0]), *words[1:]] if words and words[0] else [process.name()]
        except psutil.Error:
            continue  # gone meanwhile, or another user's process


def running_program(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str | None:
    """The first wanted program among command lines; None if there is none.

    Args:
        names: Names of programs (``steam``), or beginnings of command lines (``ollama runner``).
        lines: The command lines, program first.
    """
    wanted = [(name, name.split()) for name in names]
    for line in lines:
        for name, words in wanted:
            if list(line[: len(words)]) == words:
                return name
    return None

"""The power limit of a card: set, if this user may, and restored.

Setting one needs root; it is lost when the driver is unloaded or the machine reboots. The former limit is kept in the
home. If a killed process left its limit set, the next process restores the former one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.hardware import amd
from core.hardware.card import ask_driver
from core.hardware.nvml import Nvml, NvmlUnavailableError
from core.hardware.visible import find_gpu
from core.small_files import read_json

T = TypeVar("T")

#: Seconds allowed for the driver to take a limit.
_DRIVER_SECONDS = 10.0
#: Bit of CAP_SYS_ADMIN among a process's capabilities, which setting a power limit takes beside root.
_SYS_ADMIN = 21
_RECORD_LIMIT = 4096
_NO_PERMISSION = 4


def set_power_limit(uuid: str, watts: float) -> float:
    """Set the power limit of a card; the limit before this home's first change is kept for :func:`restore`.

    Args:
        uuid: The UUID of the card, as a :class:`core.hardware.snapshot.Device` has it.
        watts: The limit in W.

    Returns:
        The limit that was there before, in W.

    Raises:
        UserError: If this user may not set it, the card cannot be set to it, or the driver does not answer.
    """
    limit = _with_deadline(lambda: _open(uuid))
    before, low, high = _with_deadline(limit.read)
    if not low <= watts <= high:
        raise UserError(
            f"The power limit of {limit.name} can be {low:.0f} to {high:.0f} W, and not {watts:.0f} W.",
            "Choose one between them.",
        )
    record = _record(uuid)
    if not record.exists():
        # Recorded first: a process that is killed in between only leaves a record of an unchanged limit.
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(record, json.dumps({"uuid": uuid, "watts": before}) + "\n")
    try:
        _with_deadline(lambda: limit.write(watts))
    except UserError:
        if abs(_with_deadline(limit.read)[0] - before) < 1.0 and _kept(record) == before:
            record.unlink(missing_ok=True)
        raise
    return before


def restore(uuid: str) -> float | None:
    """Put back the power limit that a card had before this home's first change.

    Args:
        uuid: The UUID of the card.

    Returns:
        The limit in W; None if none was changed.

    Raises:
        UserError: If this user may not set it, or the driver does not answer; the record stays.
    """
    record = _record(uuid)
    watts = _kept(record)
    if watts is None:
        return None
    limit = _with_deadline(lambda: _open(uuid))
    _with_deadline(lambda: limit.write(watts))
    record.unlink(missing_ok=True)
    return watts


def changed_limits() -> dict[str, float]:
    """Power limits not restored yet: UUID to the former limit, in W."""
    found: dict[str, float] = {}
    for record in (paths.home() / "power").glob("*.json"):
        watts = _kept(record)
        if watts is not None:
            found[record.stem] = watts
    return found


def may_set_power(status: Path = Path("/proc/self/status")) -> bool:
    """True if this process may set a power limit; nothing is set to find out."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return os.geteuid() == 0
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return os.geteuid() == 0 and bool(int(effective, 16) >> _SYS_ADMIN & 1)


def set_command(index: int, watts: float) -> str:
    """The command by which root sets the power limit of an NVIDIA card."""
    return f"sudo nvidia-smi -i {index} -pl {watts:.0f}"


class _NvidiaLimit:
    """The power limit of an NVIDIA card."""

    def __init__(self, nvml: Nvml, index: int) -> None:
        self._nvml, self._library, self._index = nvml, nvml.library, index
        self._handle, _ = nvml.handle(index)
        self.name = f"GPU {index}"

    def read(self) -> tuple[float, float, float]:
        """The limit, and its least and greatest, in W."""
        ask = self._nvml.ask
        now = ask(self._library.nvmlDeviceGetPowerManagementLimit, self._handle) if self._handle is not None else None
        limits = self._nvml.power_range(self._index)
        if now is None or limits is None:
            raise UserError(f"{self.name} has no power limit that can be set.", "Leave the power limit as it is.")
        return now / 1000, *limits

    def write(self, watts: float) -> None:
        """Set the limit."""
        try:
            self._library.nvmlDeviceSetPowerManagementLimit(self._handle, round(watts * 1000))
        except self._library.NVMLError as error:
            if int(error.value) == _NO_PERMISSION:
                raise _not_permitted(self.name, set_command(self._index, watts)) from error
            raise UserError(f"The driver does not set the power limit of {self.name}: {error}.", "") from error


class _AmdLimit:
    """The power limit of an AMD card."""

    def __init__(self, device: Path) -> None:
        self._path = amd.power_cap_of(device)
        self.name = f"the AMD card at {device.resolve().name}"

    def read(self) -> tuple[float, float, float]:
        """The limit, and its least and greatest, in W."""
        try:
            now, low, high = (
                int(self._path.with_name(self._path.name + end).read_text(encoding="ascii")) / 1e6
                for end in ("", "_min", "_max")
            )
        except (OSError, ValueError) as error:
            message = f"{self.name} has no power limit that can be set."
            raise UserError(message, "Leave the power limit as it is.") from error
        return now, low, high

    def write(self, watts: float) -> None:
        """Set the limit."""
        text = str(round(watts * 1e6))
        try:
            self._path.write_text(text, encoding="ascii")
        except PermissionError as error:
            raise _not_permitted(self.name, f"echo {text} | sudo tee {self._path}") from error
        except OSError as error:
            raise UserError(f"The driver does not set the power limit of {self.name}: {error.strerror}.", "") from error


def _open(uuid: str) -> _NvidiaLimit | _AmdLimit:
    device = next((path for path in amd.find_cards() if amd.uuid_of(path) == uuid), None)
    if device is not None:
        return _AmdLimit(device)
    if not uuid.startswith("AMD-"):
        with contextlib.suppress(NvmlUnavailableError):
            # Not closed: the binding counts its users, and the limit is read again.
            nvml = Nvml()
            found = find_gpu(nvml.identities(), uuid)
            if found is not None:
                return _NvidiaLimit(nvml, found.index)
    raise UserError(
        f"There is no card {uuid} whose power limit could be set.", "'nvidia-smi -L' lists those there are."
    )


def _not_permitted(name: str, command: str) -> UserError:
    return UserError(f"This user may not set the power limit of {name}: root alone may.", f"Run: {command}")


def _record(uuid: str) -> Path:
    return paths.home() / "power" / f"{re.sub(r'[^A-Za-z0-9:._-]', '_', uuid)}.json"


def _kept(record: Path) -> float | None:
    try:
        found = read_json(record, _RECORD_LIMIT)
    except (OSError, ValueError):
        return None
    watts = found.get("watts") if isinstance(found, dict) else None
    return float(watts) if isinstance(watts, (int, float)) and 0 < watts < 10_000 else None


def _with_deadline(call: Callable[[], T]) -> T:
    """The call's answer; a driver that does not answer in time is an error."""

    def ask() -> tuple[T, None] | tuple[None, UserError]:
        try:
            return call(), None
        except UserError as error:
            return None, error

    answered = ask_driver(ask, _DRIVER_SECONDS)
    if answered is None:
        raise UserError(
            f"The driver has not answered for {_DRIVER_SECONDS:g} s about the power limit.",
            "Look for 'Xid' in 'sudo dmesg', and reboot.",
        )
    answer, error = answered
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]

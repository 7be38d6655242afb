"""Device locks: one for each card of this machine, and one for its CPU, by which the runs of a home know of each other.

Machines that share a home have a folder each.

A run that was started by hand holds the lock of its device together with others of its kind; one of the queue holds it
alone, and waits for that. The kernel releases a lock when the last process that holds it is gone, so that it tells of
memory that is still taken, where a recorded state only tells what a run meant to do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core import paths
from core.config.derived import wants_several
from core.config.schema import Config
from core.errors import UserError
from core.hardware.card import choose
from core.hardware.obstacle import Sight, look
from core.hardware.run_cards import process_cards
from core.runs.device_holders import live_holders, sign
from core.runs.process import host_folder

#: Environment variable of a worker that has its devices to itself: the queue's runner sets it.
ALONE_VARIABLE = "LOCALTUNE_DEVICE_ALONE"
#: The name of the CPU among devices.
CPU = "cpu"
_SHARED, _WHOLE = fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB


@dataclass(frozen=True)
class Hold:
    """Locks of devices that a run holds.

    Args:
        descriptors: Hold the locks for as long as one of their copies is open. They are not inherited by themselves.
        beside: Ids of the live runs that are on one of the devices too.
    """

    descriptors: tuple[int, ...] = ()
    beside: tuple[str, ...] = ()

    def release(self) -> None:
        """Give the devices back."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def is_alone(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this worker is to have its devices to itself."""
    return bool(environment.get(ALONE_VARIABLE))


def run_devices(config: Config, sight: Sight | None = None, environment: Mapping[str, str] | None = None) -> list[str]:
    """The devices that the processes of a run on this machine compute on: UUIDs of cards, or ``cpu``.

    Args:
        config: Its configuration.
        sight: What the driver shows; None: it is asked, where that matters.
        environment: Environment variables, for those that hide cards; None for those of this process.

    Raises:
        UserError: If a card that it names is not there.
    """
    if config.hardware.device == "cpu":
        return [CPU]
    sight = sight or look()
    if wants_several(config):
        named = [card for card in process_cards(config, sight, environment) if card is not None]
        return list(dict.fromkeys(named)) or [CPU]
    chosen = choose(sight.cards, os.environ if environment is None else environment, config.hardware.gpu)
    return [CPU] if chosen is None else [chosen.uuid or str(chosen.index)]


def take_alone(devices: Sequence[str], run_id: str) -> Hold | None:
    """Take all of some devices, as the only run on each; None where another one is on one of them.

    Args:
        devices: Names of devices.
        run_id: Who takes them.
    """
    taken: list[int] = []
    for device in devices:
        descriptor = _open(device)
        if descriptor is None:
            continue
        if not _lock(descriptor, _WHOLE):
            os.close(descriptor)
            Hold(tuple(taken)).release()
            return None
        taken.append(descriptor)
        sign(descriptor, run_id, is_first=True)
    return Hold(tuple(taken))


def take_beside(devices: Sequence[str], run_id: str) -> Hold:
    """Take some devices, whoever is on them; what another run has to itself is taken when that one has ended.

    Args:
        devices: Names of devices.
        run_id: Who takes them.
    """
    taken: list[int] = []
    beside: list[str] = []
    for device in devices:
        descriptor = _open(device)
        if descriptor is None:
            continue
        taken.append(descriptor)
        is_first = _lock(descriptor, _WHOLE)
        if not is_first:
            beside += live_holders(descriptor, run_id)
        # Also before it has the lock: it computes there all the same.
        sign(descriptor, run_id, is_first=is_first)
        if not _lock(descriptor, _SHARED):
            threading.Thread(target=_wait_to_share, args=(descriptor, run_id), name="device", daemon=True).start()
    return Hold(tuple(taken), tuple(dict.fromkeys(beside)))


def occupant(devices: Sequence[str], run_id: str = "") -> str | None:
    """Who is on one of some devices, for a sentence; None where all are free.

    Args:
        devices: Names of devices.
        run_id: A run that is not meant.
    """
    for device in devices:
        descriptor = _open(device)
        if descriptor is None:
            continue
        try:
            if not _lock(descriptor, _WHOLE):
                return next(reversed(live_holders(descriptor, run_id)), "another run")
        finally:
            os.close(descriptor)
    return None


def lock_path(device: str) -> Path:
    """The lock file of a device of this machine."""
    return paths.devices_dir() / host_folder() / f"{device.replace('/', '_')}.lock"


def _open(device: str) -> int | None:
    """The lock file of a device; None where it cannot be made, which is no reason not to train."""
    path = lock_path(device)
    try:
        paths.make_private_dir(path.parent)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(path, flags, paths.FILE_MODE)
    except (OSError, UserError):
        return None


def _lock(descriptor: int, how: int) -> bool:
    """Take a lock or change it, without waiting; whether that was possible. On a file system without locks it always
    is."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _wait_to_share(descriptor: int, run_id: str) -> None:
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # Whoever came first meanwhile has taken what was signed for the past.
        sign(descriptor, run_id)

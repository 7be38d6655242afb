"""Devices that runs share: a lock for each card of this machine, and a lock for its CPU.

Machines that share a home have a folder each. Runs that were started by hand hold the lock of their device together; a
run of the queue waits until it can hold it alone. The kernel releases a lock when the last process of a run is gone, so
a lock shows that memory is still in use, while a recorded state only shows intent.

Each line of a lock file is a holder as JSON: the run's id, and the process that holds the lock. Lines are only
appended, each in one write, until a run has the device alone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import paths
from core.config.derived import wants_several
from core.config.schema import Config
from core.errors import UserError
from core.hardware.amd import AmdSource
from core.hardware.card import ask_driver, choose
from core.hardware.drivers import is_wsl
from core.hardware.nvml import Nvml, NvmlUnavailableError
from core.hardware.obstacle import Sight, look, process_cards
from core.runs.record.state import host_folder, hostname, is_same_process, own_identity
from core.runs.record.store import Run, list_runs
from core.small_files import parse_json
from core.text import one_line
from core.units import format_bytes

#: Longest id of a run in a lock file, and bytes of the file that are read from its end.
_ID_LIMIT, _LIMIT = 300, 1 << 16


def sign(descriptor: int, run_id: str, *, is_first: bool = False) -> None:
    """Write the holder of a device into its lock file, for messages of other runs; skipped if the disk is full.

    Args:
        descriptor: Descriptor of the lock file.
        run_id: The run; this process holds the lock.
        is_first: Whether no other run has the device, so that earlier lines are outdated.
    """
    pid, identity = own_identity()
    name = run_id.encode("utf-8", errors="replace")[:_ID_LIMIT].decode("utf-8", errors="ignore")
    line = json.dumps({"run": name, "pid": pid, "pid_started": identity}).encode("ascii")
    with suppress(OSError):
        if is_first:
            os.ftruncate(descriptor, 0)
        # A line that a full disk has cut short is ended first.
        os.write(descriptor, b"\n" + line + b"\n")


def live_holders(descriptor: int, besides: str = "") -> tuple[str, ...]:
    """The live runs that have signed a lock file, in the order in which they came.

    Args:
        descriptor: Descriptor of the lock file.
        besides: Id of a run to leave out.
    """
    try:
        size = os.fstat(descriptor).st_size
        lines = os.pread(descriptor, _LIMIT, max(size - _LIMIT, 0)).splitlines()
    except OSError:
        return ()
    found = (name for line in lines if (name := _live_run(line)) is not None)
    return tuple(name for name in dict.fromkeys(found) if name != besides)


def _live_run(line: bytes) -> str | None:
    """The run in a line; None if the line is invalid, or its process is gone or has given the device back."""
    try:
        said: Any = parse_json(line)
        name, pid, identity = said["run"], said["pid"], said["pid_started"]
    except (ValueError, KeyError, TypeError):
        return None
    if type(pid) is not int or not isinstance(identity, str) or not is_same_process(pid, identity):
        return None
    if not isinstance(name, str) or name != one_line(name, _ID_LIMIT) or Path(name).name != name or name in ("", ".."):
        return None
    run = Run(paths.runs_dir() / name)
    # A rank's run may be on another machine, where its home is.
    state = run.state() if run.path.is_dir() else None
    return None if state is not None and (state.is_over or state.parked) else str(name)


#: Environment variable of a worker that has its devices to itself; the queue's runner sets it.
ALONE_VARIABLE = "LOCALTUNE_DEVICE_ALONE"
#: The name of the CPU among devices.
CPU = "cpu"
_SHARED, _WHOLE = fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB


@dataclass(frozen=True)
class Hold:
    """Locks of devices that a run holds.

    Args:
        descriptors: Descriptors of the lock files. A lock is held until the last copy of its descriptor is closed;
            child processes get a copy only if it is passed to them.
        beside: Ids of the live runs on the same devices.
    """

    descriptors: tuple[int, ...] = ()
    beside: tuple[str, ...] = ()

    def release(self) -> None:
        """Give the devices back."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def is_alone(environment: Mapping[str, str] = os.environ) -> bool:
    """True if this worker is to have its devices to itself."""
    return bool(environment.get(ALONE_VARIABLE))


def run_devices(config: Config, sight: Sight | None = None, environment: Mapping[str, str] | None = None) -> list[str]:
    """The devices that the processes of a run on this machine compute on: UUIDs of cards, or ``cpu``.

    Args:
        config: Configuration of the run.
        sight: Cards as the driver reports them; None to ask the driver if needed.
        environment: Environment variables, which may hide cards; None for the environment of this process.

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
    """Take devices as the only run on each; None if another run is on any of them.

    Args:
        devices: Names of devices.
        run_id: The run that takes them.
    """
    taken: list[int] = []
    for device in devices:
        descriptor = _open_lock(device)
        if descriptor is None:
            continue
        if not _try_flock(descriptor, _WHOLE):
            os.close(descriptor)
            Hold(tuple(taken)).release()
            return None
        taken.append(descriptor)
        sign(descriptor, run_id, is_first=True)
    return Hold(tuple(taken))


def take_beside(devices: Sequence[str], run_id: str) -> Hold:
    """Take devices that other runs may be on; a device that another run has to itself is taken when that run ends.

    Args:
        devices: Names of devices.
        run_id: The run that takes them.
    """
    taken: list[int] = []
    beside: list[str] = []
    for device in devices:
        descriptor = _open_lock(device)
        if descriptor is None:
            continue
        taken.append(descriptor)
        is_first = _try_flock(descriptor, _WHOLE)
        if not is_first:
            beside += live_holders(descriptor, run_id)
        # Even before it has the lock: it computes on the device anyway.
        sign(descriptor, run_id, is_first=is_first)
        if not _try_flock(descriptor, _SHARED):
            threading.Thread(target=_wait_to_share, args=(descriptor, run_id), name="device", daemon=True).start()
    return Hold(tuple(taken), tuple(dict.fromkeys(beside)))


def occupant(devices: Sequence[str], run_id: str = "") -> str | None:
    """Run on any of some devices, for a sentence; None if all are free.

    Args:
        devices: Names of devices.
        run_id: A run to leave out.
    """
    for device in devices:
        descriptor = _open_lock(device)
        if descriptor is None:
            continue
        try:
            if not _try_flock(descriptor, _WHOLE):
                return next(reversed(live_holders(descriptor, run_id)), "another run")
        finally:
            os.close(descriptor)
    return None


def lock_path(device: str) -> Path:
    """The lock file of a device of this machine."""
    return paths.devices_dir() / host_folder() / f"{device.replace('/', '_')}.lock"


def _open_lock(device: str) -> int | None:
    """The lock file of a device; None if it cannot be made, which must not prevent training."""
    path = lock_path(device)
    try:
        paths.make_private_dir(path.parent)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(path, flags, paths.FILE_MODE)
    except (OSError, UserError):
        return None


def _try_flock(descriptor: int, how: int) -> bool:
    """Take or change a lock without waiting; True on success, and on a file system without locks."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _wait_to_share(descriptor: int, run_id: str) -> None:
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # A run that has taken the device alone meanwhile has truncated the file.
        sign(descriptor, run_id)


#: Size of a model in 4 bits, as a share of its size in 16 bits: the embeddings stay in 16 bits.
_QUANTIZED = 0.35


def model_bytes(files: int, method: str) -> int:
    """The least memory that a model needs, in bytes.

    Args:
        files: Bytes of its weight files, in 16 bits.
        method: ``method.name``; ``qlora`` loads the model in 4 bits.
    """
    return int(files * _QUANTIZED) if method == "qlora" else files


def refuse_crowding(needed: int, free: int, runs: Callable[[], Sequence[str]], what: str = "the model") -> None:
    """Refuse to load something that does not fit beside the runs on the same device.

    Without a run, nothing is at risk: running out of memory is then reported as usual.

    Args:
        needed: Bytes that it needs.
        free: Bytes that are free on the device.
        runs: Finds the runs that train there; slow, and called only if it does not fit.
        what: Its name in the message.

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
    if uuid.startswith("AMD-"):
        return {process.pid for device in AmdSource().read(uuid) for process in device.processes}
    with suppress(NvmlUnavailableError), closing(Nvml()) as nvml:
        indices = [card.index for card in nvml.identities() if uuid in (card.uuid, *card.instances)]
        return {process.pid for index in indices for process in nvml.processes(index)}
    return set()


def _runs_of(pids: Collection[int] | None, *, on_cpu: bool = False) -> list[str]:
    """Runs with any of the processes; with None all runs that may be on the device, as WSL lists no processes."""
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

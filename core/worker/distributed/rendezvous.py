"""Rendezvous of the processes of a run: rank of each, and address. Nothing here imports torch.

On one machine they meet over a file in the run directory, and communicate only over loopback. On several machines
torchrun or Slurm provide address and port; rank 0 listens only there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from core.errors import UserError

#: Environment variable with the rendezvous: ``file:///…`` or ``tcp://address:port``.
MEETING = "LOCALTUNE_MEETING"
#: Environment variables of torchrun: rank, number of processes, local rank, and address.
RANK, WORLD_SIZE, LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
MASTER_ADDRESS, MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"
#: Their counterparts of Slurm's srun, which gives no address.
_SLURM = {RANK: "SLURM_PROCID", WORLD_SIZE: "SLURM_NTASKS", LOCAL_RANK: "SLURM_LOCALID"}
_LOOPBACK = "lo"


class RankLostError(Exception):
    """Another process of the run no longer answers."""


@dataclass(frozen=True)
class Meeting:
    """Rank and rendezvous of one process of a run.

    Args:
        rank: Its rank; rank 0 writes the record and receives commands.
        count: Number of processes.
        local: Local rank on its machine.
        place: Rendezvous: ``file:///…`` or ``tcp://address:port``.
    """

    rank: int
    count: int
    local: int
    place: str

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise UserError(f"Process {self.rank} is none of {self.count}.", f"Look at {RANK} and {WORLD_SIZE}.")

    @property
    def is_local(self) -> bool:
        """True if all processes are on this machine."""
        return self.place.startswith("file:")

    @property
    def address(self) -> tuple[str, int]:
        """Address and port of a meeting over a network."""
        found = urlsplit(self.place)
        return found.hostname or "", found.port or 0

    def variables(self) -> dict[str, str]:
        """Environment variables for a process."""
        return {RANK: str(self.rank), WORLD_SIZE: str(self.count), LOCAL_RANK: str(self.local), MEETING: self.place}

    def keep_inside(self, environment: MutableMapping[str, str]) -> None:
        """Restrict gloo and NCCL to the interface of the rendezvous; before torch is imported."""
        name = _LOOPBACK if self.is_local else _interface_of(self.address[0])
        if name is not None:
            # gloo takes an exact name; NCCL takes a prefix, so that ``eth1`` matches ``eth10``, unless it starts with
            # ``=`` (NVIDIA, NCCL user guide, Environment Variables, NCCL_SOCKET_IFNAME).
            environment.update({"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"})


def _interface_of(address: str) -> str | None:
    """Network interface with a numeric address; None if there is none."""
    wanted = address.partition("%")[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == wanted for found in addresses):
            return name
    return None


def file_meeting(path: Path) -> str:
    """Rendezvous over a file, which must not exist yet."""
    return path.absolute().as_uri()


def tcp_meeting(address: str, port: int | str) -> str:
    """Rendezvous over a network.

    Args:
        address: Numeric address of rank 0's machine.
        port: The port.
    """
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def read_meeting(environment: Mapping[str, str]) -> Meeting | None:
    """Rank and rendezvous of this process from the environment, as set by our supervisor, torchrun or srun. None for a
    single process.

    Args:
        environment: Environment variables.

    Raises:
        UserError: If the variables are inconsistent.
    """
    names = {name: name for name in _SLURM} if RANK in environment else _SLURM
    values = {name: environment.get(alias, "") for name, alias in names.items()}
    if not values[RANK] or not values[WORLD_SIZE] or values[WORLD_SIZE] == "1":
        return None
    place = environment.get(MEETING, "")
    if not place and environment.get(MASTER_ADDRESS):
        place = tcp_meeting(environment[MASTER_ADDRESS], environment.get(MASTER_PORT, "29500"))
    if not place:
        return None
    if not all(value.isascii() and value.isdecimal() for value in values.values() if value):
        raise UserError(
            f"{RANK}, {WORLD_SIZE} and {LOCAL_RANK} are not all numbers: {', '.join(values.values())}.",
            "Start the processes with torchrun, srun or 'localtune-tui train'.",
        )
    local = int(values[LOCAL_RANK] or 0)
    return Meeting(int(values[RANK]), int(values[WORLD_SIZE]), local, place)


def forget(environment: MutableMapping[str, str] | None = None) -> None:
    """Remove the variables, so that child processes do not take them for theirs."""
    environment = os.environ if environment is None else environment
    for name in (RANK, WORLD_SIZE, LOCAL_RANK, MEETING, MASTER_ADDRESS, MASTER_PORT):
        environment.pop(name, None)

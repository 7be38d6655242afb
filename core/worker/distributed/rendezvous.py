"""Rendezvous of the processes of a run: who each is, and where they meet. Nothing here imports torch.

On one machine they meet over a file in the run directory, and speak over loopback alone. Over several,
torchrun or Slurm name the address and port where they meet; the first one listens there and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from core.errors import UserError

#: Environment variable with the place where the processes meet: ``file:///…`` or ``tcp://address:port``.
MEETING = "LOCALTUNE_MEETING"
#: Environment variables of torchrun: number of the process, how many there are, number on its machine, where they meet.
RANK, WORLD_SIZE, LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
MASTER_ADDRESS, MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"
#: The same of Slurm's srun, which does not say where they meet.
_SLURM = {RANK: "SLURM_PROCID", WORLD_SIZE: "SLURM_NTASKS", LOCAL_RANK: "SLURM_LOCALID"}
_LOOPBACK = "lo"


class RankLostError(Exception):
    """Another process of the run does not answer any more."""


@dataclass(frozen=True)
class Meeting:
    """The place of one process among those of its run.

    Args:
        rank: Its number, from 0; the first one writes the record and hears commands.
        count: How many there are.
        local: Its number on its machine.
        place: Where they meet: ``file:///…`` or ``tcp://address:port``.
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
        """True if all are on this machine."""
        return self.place.startswith("file:")

    @property
    def address(self) -> tuple[str, int]:
        """Address and port of a meeting over a network."""
        found = urlsplit(self.place)
        return found.hostname or "", found.port or 0

    def variables(self) -> dict[str, str]:
        """The environment that tells a process its place."""
        return {
            RANK: str(self.rank),
            WORLD_SIZE: str(self.count),
            LOCAL_RANK: str(self.local),
            MEETING: self.place,
        }

    def keep_inside(self, environment: MutableMapping[str, str]) -> None:
        """Have gloo and NCCL use the interface of the meeting and no other; before torch is imported."""
        name = _LOOPBACK if self.is_local else _interface_of(self.address[0])
        if name is not None:
            # gloo takes the name as it is; NCCL takes it for a prefix, ``eth1`` for that of ``eth10``, unless ``=``
            # stands before it (NVIDIA, NCCL user guide, Environment Variables, NCCL_SOCKET_IFNAME).
            environment.update({"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"})


def _interface_of(address: str) -> str | None:
    """The network interface that has a numeric address; None if none has it."""
    wanted = address.partition("%")[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == wanted for found in addresses):
            return name
    return None


def file_meeting(path: Path) -> str:
    """The place of a meeting over a file, which must not exist yet."""
    return path.absolute().as_uri()


def tcp_meeting(address: str, port: int) -> str:
    """The place of a meeting over a network.

    Args:
        address: A numeric address of the machine of the first process.
        port: The port.
    """
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def read_meeting(environment: Mapping[str, str]) -> Meeting | None:
    """The place of this process, as its environment says: by our own supervisor, torchrun or srun. None where it is the
    only one.

    Args:
        environment: Environment variables.

    Raises:
        UserError: If the variables make no sense together.
    """
    names = {name: name for name in _SLURM} if RANK in environment else _SLURM
    values = {name: environment.get(alias, "") for name, alias in names.items()}
    if not values[RANK] or not values[WORLD_SIZE] or values[WORLD_SIZE] == "1":
        return None
    place = environment.get(MEETING, "")
    if not place and environment.get(MASTER_ADDRESS):
        place = f"tcp://{environment[MASTER_ADDRESS]}:{environment.get(MASTER_PORT, '29500')}"
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
    """Remove what tells a place, so that processes started from here do not take it for theirs."""
    environment = os.environ if environment is None else environment
    for name in (RANK, WORLD_SIZE, LOCAL_RANK, MEETING, MASTER_ADDRESS, MASTER_PORT):
        environment.pop(name, None)

"""Two network namespaces that stand for two machines, joined by a cable (veth); root and ``ip`` are needed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Machine:
    """A namespace.

    Args:
        name: Its name.
        address: Its address on the cable.
    """

    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """What runs a command in it."""
        return ["ip", "netns", "exec", self.name]


@dataclass(frozen=True)
class TwoMachines:
    """Two machines and the cable between them."""

    head: Machine
    other: Machine

    def cut(self) -> None:
        """Pull the cable."""
        _ip("-n", self.other.name, "link", "set", "cable", "down")


def listening(pid: int) -> set[str]:
    """The addresses at which anything listens in the network namespace of a process."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add(_address(fields[1].partition(":")[0]))
    return found


def _address(digits: str) -> str:
    """An address as the kernel's tables write it, in bytes of the machine's order."""
    raw = bytes.fromhex(digits)
    if len(raw) == 4:
        return ".".join(str(byte) for byte in reversed(raw))
    return "::" if not any(raw) else digits


@contextmanager
def two_machines() -> Iterator[TwoMachines]:
    """Make them; the test is skipped where that is not allowed."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the program ip")
    number = os.getpid() % 250
    machines = [Machine(f"lt{os.getpid()}{side}", f"10.77.{number}.{place}") for place, side in enumerate("ab", 1)]
    try:
        for machine in machines:
            if subprocess.run(["ip", "netns", "add", machine.name], capture_output=True).returncode:
                pytest.skip("this machine allows no network namespaces")
        head, other = machines
        _ip("-n", head.name, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", other.name)
        for machine in machines:
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "cable")
            for link in ("cable", "lo"):
                _ip("-n", machine.name, "link", "set", link, "up")
        yield TwoMachines(head, other)
    finally:
        for machine in machines:
            subprocess.run(["ip", "netns", "delete", machine.name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

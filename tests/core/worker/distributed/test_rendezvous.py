"""Rank and rendezvous of a process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from core.errors import UserError
from core.worker.distributed.rendezvous import Meeting, file_meeting, forget, read_meeting
from tests.cases import cases

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "MASTER_ADDR": "10.0.0.1"}


def test_a_process_reads_the_place_that_it_was_given(tmp_path: Path) -> None:
    meeting = Meeting(1, 2, 1, file_meeting(tmp_path / "a b"))
    assert read_meeting(meeting.variables()) == meeting
    assert meeting.is_local
    assert meeting.place == f"file://{tmp_path}/a%20b"


@cases(
    ("environment", "address"),
    [
        (TORCHRUN, ("10.0.0.1", 29501)),
        (SRUN, ("10.0.0.1", 29500)),
        (TORCHRUN | {"MASTER_ADDR": "fd00::7"}, ("fd00::7", 29501)),
    ],
)
def test_torchrun_and_slurm_are_understood(environment: dict[str, str], address: tuple[str, int]) -> None:
    found = read_meeting(environment)
    assert found is not None
    assert (found.rank, found.count, found.local, found.address) == (3, 4, 1, address)
    assert not found.is_local


@cases(
    "environment",
    [
        {},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        # A shell in an allocation of Slurm: nobody says where to meet.
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    ],
)
def test_the_only_process_has_no_place(environment: dict[str, str]) -> None:
    assert read_meeting(environment) is None


@cases("change", [{"RANK": "x"}, {"RANK": "4"}, {"WORLD_SIZE": "-2"}, {"LOCAL_RANK": "1.5"}])
def test_places_that_make_no_sense_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(UserError):
        read_meeting(TORCHRUN | change)


def test_on_one_machine_only_loopback_is_used(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    Meeting(0, 2, 0, file_meeting(tmp_path / "meeting")).keep_inside(environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


@pytest.mark.parametrize("place", ["tcp://[fe80::7%eth7]:29500", "tcp://[fe80::7]:29500"])
def test_the_interface_of_an_address_is_used_with_or_without_zone(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"eth0": ["10.0.0.7"], "eth7": ["fe80::7%eth7"]}
    named = {name: [SimpleNamespace(address=one) for one in found] for name, found in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: named)
    environment: dict[str, str] = {}
    Meeting(0, 2, 0, place).keep_inside(environment)
    # NCCL would take eth70 as well otherwise.
    assert environment == {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "=eth7"}


def test_libraries_do_not_see_the_rendezvous() -> None:
    environment = {**TORCHRUN, "PATH": "/bin"}
    forget(environment)
    assert environment == {"PATH": "/bin"}

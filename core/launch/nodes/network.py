"""Addresses of this machine: which are its own, the interface of each, and the one that leads to another machine."""

from __future__ import annotations

import ipaddress
import socket

import psutil

from core.errors import UserError
from core.text import one_line

#: Seconds for one machine to reach another.
REACH_SECONDS = 5.0
#: Seconds between two signs of life of the head, and seconds of silence after which it is taken for gone.
SIGN_SECONDS, SILENCE_SECONDS = 5.0, 30.0


def resolve(address: str) -> str:
    """The numeric address of a name.

    Raises:
        UserError: If it has none.
    """
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"distributed.address {one_line(address, 80)} is no address.", "Write it as 192.168.1.10."
        ) from error
    return str(found[0][4][0])


def interface_of(address: str) -> str | None:
    """The network interface that has a numeric address; None if none has it."""
    wanted = address.partition("%")[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == wanted for found in addresses):
            return name
    return None


def interface_variables(name: str) -> dict[str, str]:
    """The environment variables that have gloo and NCCL use a network interface and no other.

    gloo takes a name as it is; NCCL takes it for the beginning of names, ``eth1`` for that of ``eth10``, unless ``=``
    stands before it.

    Args:
        name: Of the interface.

    Source: NVIDIA, NCCL user guide, Environment Variables, NCCL_SOCKET_IFNAME.
    """
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}


def own_address_towards(address: str, port: int) -> str:
    """The address of this machine that it uses towards another one; nothing is sent.

    Raises:
        UserError: If there is no way to it.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()} has no way to {one_line(address, 80)}: {error.strerror}.",
            "Set distributed.address to an address that all machines reach.",
        ) from error


class MeetingPoint:
    """The address and port of the head, open for a moment so that other machines can prove that they reach it.

    Raises:
        UserError: If the address is not this machine's, is one that no other machine reaches, or the port is taken.
    """

    def __init__(self, address: str, port: int) -> None:
        self.port = port
        self.address = resolve(address)
        shown = one_line(address, 80)
        if ipaddress.ip_address(self.address.partition("%")[0]).is_loopback:
            raise UserError(
                f"distributed.address {shown} is loopback, which no other machine reaches.",
                "Set it to this machine's address in the network of the others.",
            )
        if interface_of(self.address) is None:
            raise UserError(
                f"distributed.address {shown} is no address of this machine.", "'ip -brief address' lists them."
            )
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((self.address, port))
            self._socket.listen(64)
        except OSError as error:
            self._socket.close()
            raise UserError(
                f"distributed.port {port} cannot be used at {shown}: {error.strerror}.", "Set it to another one."
            ) from error

    def __enter__(self) -> MeetingPoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()


def reach(address: str, port: int) -> None:
    """Connect to the head's meeting point and leave again: a firewall in between shows here, not after a timeout.

    Raises:
        UserError: If it cannot be reached.
    """
    try:
        socket.create_connection((address, port), timeout=REACH_SECONDS).close()
    except OSError as error:
        why = error.strerror or "no answer"
        raise UserError(
            f"{socket.gethostname()} cannot reach {one_line(address, 80)} at port {port}: {why}.",
            "Let the port through the firewall, or set distributed.address to an address that all machines reach.",
        ) from error

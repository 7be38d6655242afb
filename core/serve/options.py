"""Options of the server, as the command line and the app give them."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError

LOOPBACK = "127.0.0.1"
#: The variable with the key that clients have to send, for a key that stays the same.
KEY_VARIABLE = "LOCALTUNE_API_KEY"
#: Names of this machine that a client may use, beside the address that is listened on.
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
PORT = 8765
#: Requests that wait for their turn; more are refused.
QUEUE = 32
_SHORTEST_KEY = 8


@dataclass(frozen=True)
class ServeOptions:
    """Options of the server: where it listens, for whom, and with what."""

    targets: tuple[str, ...]
    """Runs, ``RUN`` or ``RUN@STEP``, and models."""
    host: str = LOOPBACK
    """The address listened on."""
    port: int = PORT
    """The port; 0 for any that is free."""
    uds: Path | None = None
    """A Unix socket instead."""
    key: str = ""
    """The key that clients have to send; empty for a random one."""
    names: tuple[str, ...] = ()
    """Other names of this machine that a client may use."""
    queue: int = QUEUE
    """Requests that may wait."""

    def __post_init__(self) -> None:
        if not self.targets or not all(target.strip() for target in self.targets):
            raise UserError("No run and no model is named to be served.", "Name one, or take 'latest'.")
        if not self.key:
            object.__setattr__(self, "key", new_key())
        if len(self.key) < _SHORTEST_KEY or not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise UserError(
                f"The key must have at least {_SHORTEST_KEY} characters, all of them ASCII, without spaces.",
                f"Give another one with --key or {KEY_VARIABLE}, or none, for a random one.",
            )
        if not 0 <= self.port <= 65535:
            raise UserError(f"{self.port} is no port.", "Give one from 1 to 65535, or 0 for any that is free.")

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return self.uds is not None or is_loopback(self.host)

    @property
    def listens_everywhere(self) -> bool:
        """Whether all addresses of this machine are listened on."""
        return self.uds is None and self.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound

    @property
    def allowed_names(self) -> frozenset[str]:
        """What a client may call this machine (``Host``), in lower case."""
        return frozenset(name.lower().strip("[]") for name in (*LOCAL_NAMES, self.host, *self.names))


@dataclass(frozen=True)
class ServerAddress:
    """Address, key and models of a server that listens, as a client needs them."""

    url: str
    """The base URL, which ends in ``/v1``."""
    key: str
    models: tuple[str, ...]
    """The ids of the models."""


def is_loopback(host: str) -> bool:
    """Whether an address or a name is that of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def new_key() -> str:
    """A random key: 32 bytes."""
    return secrets.token_urlsafe(32)

"""Ollama on this machine: its program, and its server's address, which must be one of this machine's own."""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.text import one_line

_PORT = 11434
_SCHEME = "http"
#: Variables that the program gets; no keys, and no proxies.
_KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "USER", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


@dataclass(frozen=True)
class Address:
    """Address of a server on a loopback interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def find_ollama() -> Path | None:
    """The program ``ollama`` on the PATH; None if there is none."""
    found = shutil.which("ollama")
    return None if found is None else Path(found).absolute()


def server_address(environment: Mapping[str, str] | None = None) -> Address:
    """The address of Ollama's server as ``OLLAMA_HOST`` has it, by default port 11434 of 127.0.0.1.

    Args:
        environment: The variables; by default those of this process.

    Raises:
        UserError: If it is on another machine, or no address; nothing is looked up in the network.
    """
    value = (os.environ if environment is None else environment).get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    scheme, mark, rest = value.rpartition("://")
    port = str(_PORT) if not mark else "80"
    rest = rest.partition("/")[0]
    if mark and scheme != _SCHEME:
        raise _remote(value)
    host = rest
    if rest.startswith("["):
        host, _, after = rest[1:].partition("]")
        port = after[1:] if after.startswith(":") else port
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise UserError(
            f"OLLAMA_HOST has no port that can be used: {one_line(value, 80)}.", "Set it right or unset it."
        )
    return Address(_own_host(host, value), int(port))


def _own_host(host: str, value: str) -> str:
    if host in ("", "localhost"):
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise _remote(value) from error
    if address.is_unspecified:
        # A server that listens everywhere is reached here as well.
        return "127.0.0.1" if address.version == 4 else "::1"
    if not address.is_loopback:
        raise _remote(value)
    return str(address)


def _remote(value: str) -> UserError:
    return UserError(
        f"OLLAMA_HOST is {one_line(value, 80)}, which is not this machine: models and prompts are sent to no other.",
        "Copy the exported directory there and run 'ollama create' on it, or unset OLLAMA_HOST.",
    )


def program_environment(address: Address) -> dict[str, str]:
    """The environment of the program: its own variables, and the server's address."""
    own = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("OLLAMA_")}
    return own | {"OLLAMA_HOST": f"http://{address}", "NO_PROXY": "*", "TERM": "dumb"}

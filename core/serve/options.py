"""Options of the server, its packages, and the socket that it listens on."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import stat
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from core.errors import UserError
from core.text import one_line

LOOPBACK = "127.0.0.1"
#: The variable with a permanent key for clients.
KEY_VARIABLE = "LOCALTUNE_API_KEY"
#: Names of this machine that a client may use, beside the address that is listened on.
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
PORT = 8765
#: Requests that wait for their turn; more are refused.
QUEUE = 32
_SHORTEST_KEY = 8
#: An origin as browsers send it (RFC 6454, section 6.2): in lower case, without a path.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+")


@dataclass(frozen=True)
class ServeOptions:
    """Options of the server: address, key, names and models."""

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
    origins: tuple[str, ...] = ()
    """Origins of web pages that may ask, such as ``http://localhost:3000``."""
    queue: int = QUEUE
    """Requests that may wait."""

    def __post_init__(self) -> None:
        if not self.targets or not all(target.strip() for target in self.targets):
            raise UserError("No run and no model is named to be served.", "Name one, or take 'latest'.")
        if not self.key:
            object.__setattr__(self, "key", secrets.token_urlsafe(32))
        if len(self.key) < _SHORTEST_KEY or not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise UserError(
                f"The key must have at least {_SHORTEST_KEY} characters, all of them ASCII, without spaces.",
                f"Give another one with --key or {KEY_VARIABLE}, or none, for a random one.",
            )
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise UserError(
                    f"{one_line(origin, 80)} is not an origin of a web page.",
                    "Give scheme, name and port as the browser sends them, as in http://localhost:3000. All pages at "
                    "once cannot be allowed.",
                )
        if not 0 <= self.port <= 65535:
            raise UserError(f"{self.port} is not a port.", "Give one from 1 to 65535, or 0 for any that is free.")

    @property
    def is_loopback(self) -> bool:
        """True if only programs on this machine can connect."""
        return self.uds is not None or is_loopback(self.host)

    @property
    def listens_everywhere(self) -> bool:
        """True if the server listens on all addresses of this machine."""
        return self.uds is None and self.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound

    @property
    def allowed_names(self) -> frozenset[str]:
        """Host names that a client may use for this machine (``Host``), in lower case."""
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
    """True if an address or a name is on the loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


#: Connections that wait to be accepted.
BACKLOG = 512
#: Most bytes of the path of a Unix socket.
_PATH_LIMIT = 100


def open_listener(options: ServeOptions) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: If the address is in use, or cannot be listened on.
    """
    return _unix(options.uds) if options.uds is not None else _inet(options.host, options.port)


def address_of(listener: socket.socket, options: ServeOptions) -> str:
    """The base URL for clients: ``http://127.0.0.1:8765/v1``; of a Unix socket, the address in requests to it."""
    if options.uds is not None:
        return "http://localhost/v1"
    host, port = listener.getsockname()[:2]
    host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _inet(host: str, port: int) -> socket.socket:
    shown = one_line(host, 80)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"{shown} is not an address of this machine.", "Give one that 'ip address' lists.") from error
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(
            f"The server cannot listen on {shown}, port {port}: {error.strerror}.",
            "Another program, or another server of this one, has it: give another --port, or 0 for any that is free.",
        ) from error
    return listener


def _unix(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise UserError(f"The path of the socket has more than {_PATH_LIMIT} bytes.", "Take a shorter one.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _remove_stale(path)
        # The mode is set from the beginning, so that nobody else can connect at any moment.
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(
            f"The socket {one_line(str(path), 200)} cannot be made: {error.strerror or error}.",
            "Take a path in a directory of yours, at which there is no file.",
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove this user's socket if nobody listens on it any more; anything else stays, and is an error later."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.getuid():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError:
            return


_PACKAGES = ("starlette", "uvicorn", "llguidance")


def check_installed() -> None:
    """Refuse to serve without the packages of the extra.

    Raises:
        UserError: If one is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"The server needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            "Install it with the app: pip install 'localtune-tui[serve]'",
        )

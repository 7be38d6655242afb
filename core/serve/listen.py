"""The socket that the server listens on: one address, or a Unix socket for this user alone."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from core.errors import UserError
from core.serve.options import ServeOptions
from core.text import one_line

#: Connections that wait to be accepted.
BACKLOG = 512
#: Most bytes of the path of a Unix socket.
_PATH_LIMIT = 100


def open_listener(options: ServeOptions) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: If the address is in use, or cannot be listened on.
    """
    return _unix(options.uds) if options.uds is not None else _inet(options.host, options.port)


def address_of(listener: socket.socket, options: ServeOptions) -> str:
    """The base URL for clients: ``http://127.0.0.1:8765/v1``; of a Unix socket, one that clients ask through it."""
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
        raise UserError(f"{shown} is no address of this machine.", "Give one that 'ip address' lists.") from error
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
        # Nobody else can connect at any moment: the mode is there from the beginning.
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
    """Remove a socket of this user's that nobody listens on any more; anything else stays, and is an error later."""
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


def remove_socket(path: Path) -> None:
    """Remove the socket's file at the end."""
    with contextlib.suppress(OSError):
        path.unlink()

"""Commands from outside, by socket or signal: queued here, carried out by the training thread at its control points."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from core.errors import UserError
from core.runs.protocol import (
    COMMANDS,
    LINE_LIMIT,
    ProtocolError,
    Request,
    decode_request,
    encode_message,
    peer_uid,
)
from core.runs.sockets import RUNTIME_SOCKETS, is_private, made_directories, private_socket_path, runtime_dir
from core.text import one_line
from core.worker.process.log import log

#: Seconds that a peer may take to read what it has asked for.
SEND_SECONDS = 5
#: Commands that wait at most; a person gives one at a time.
WAITING_LIMIT = 100
#: Seconds between two tries to accept a connection when the system has no room for one.
ACCEPT_SECONDS = 0.5


class StopRequested(Exception):  # noqa: N818 - it is a request, not an error
    """Raised at a point where the run can stop; ``sender`` asked for it, and with ``now`` nothing is saved."""

    def __init__(self, sender: str, *, now: bool = False) -> None:
        super().__init__(sender)
        self.sender = sender
        self.now = now


@dataclass
class Command:
    """A request that waits for the training thread."""

    request: Request
    send: Callable[[dict[str, Any]], None]
    """Sends one line to the asker; quietly does nothing when it has gone."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the asker has closed the connection."""
    answered: bool = False

    def answer(self, **fields: Any) -> None:
        """Answer with success."""
        self.answered = True
        self.send({"id": self.request.id, "ok": True, **fields})

    def refuse(self, error: str, hint: str = "") -> None:
        """Answer with a sentence that says why not."""
        self.answered = True
        self.send({"id": self.request.id, "ok": False, "error": error, "hint": hint})

    def token(self, text: str, source: str) -> None:
        """Send a piece of an answer that is being generated, and which weights say it."""
        self.send({"id": self.request.id, "token": text, "source": source})


class Controls:
    """The queue between those who ask and the training thread.

    Only the training thread carries out commands, so that none of them meets half a step.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[Command] = queue.Queue()
        self._stop_sender: str | None = None
        self._stop_now = False
        self._closed = False

    @property
    def stop_sender(self) -> str | None:
        """Who asked for the stop, or None."""
        return self._stop_sender

    def put(self, command: Command) -> None:
        """Queue a command from another thread; a stop is seen at once, wherever the run is."""
        if self._closed:
            command.refuse("The run has ended.")
            return
        if command.request.command == "stop":
            self.request_stop("socket", now=command.request.args.get("now") is True)
        if self._queue.qsize() < WAITING_LIMIT:
            self._queue.put(command)
        elif command.request.command == "stop":
            command.answer()
        else:
            command.refuse("Too many commands are waiting.", "Try again when the training has got to them.")

    def request_stop(self, sender: str, *, now: bool = False) -> None:
        """Ask for a stop; safe in a signal handler.

        Args:
            sender: Who asks; the first one is told.
            now: Without a checkpoint, even where one with a checkpoint has been asked for before.
        """
        self._stop_now = self._stop_now or now
        self._stop_sender = self._stop_sender or sender

    def check_stop(self) -> None:
        """Raise if a stop was asked for: called in the phases that have nothing to save.

        Raises:
            StopRequested: If so.
        """
        if self._stop_sender is not None:
            raise StopRequested(self._stop_sender, now=self._stop_now)

    def waiting(self) -> Iterator[Command]:
        """The commands that wait now, in order."""
        while True:
            try:
                yield self._queue.get_nowait()
            except queue.Empty:
                return

    def take(self, name: str) -> list[Command]:
        """The waiting commands of one name, in order; the others go on waiting."""
        taken: list[Command] = []
        for command in list(self.waiting()):
            if command.request.command == name:
                taken.append(command)
            else:
                self._queue.put(command)
        return taken

    def wait(self, seconds: float) -> Command | None:
        """The next command, or None after ``seconds`` without one (or at once when a signal has asked for a stop)."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=min(left, 0.2))
            if self._stop_sender is not None:
                return None
        return None

    def close(self) -> None:
        """Refuse what still waits and all that comes."""
        self._closed = True
        for command in self.waiting():
            if command.request.command == "stop":
                command.answer(state="over")
            else:
                command.refuse("The run has ended.")


def install_signals(controls: Controls) -> None:
    """SIGTERM and SIGINT stop after a checkpoint; SIGHUP means nothing (the terminal may go)."""

    def stop(number: int, _frame: FrameType | None) -> None:
        controls.request_stop(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def remove_stale_sockets() -> list[Path]:
    """Remove the sockets outside of run directories that killed workers of this user have left; returns them.

    What a worker leaves in its run directory, the next worker of that run replaces.
    """
    removed: list[Path] = []
    made = made_directories()
    for directory in [*([runtime_dir()] if is_private(runtime_dir()) else []), *made]:
        for path in directory.glob(RUNTIME_SOCKETS):
            with contextlib.suppress(OSError):  # it may be gone by now, or another's
                status = path.lstat()
                if status.st_uid == os.getuid() and stat.S_ISSOCK(status.st_mode) and not _is_served(path):
                    path.unlink()
                    removed.append(path)
                    if directory in made:
                        directory.rmdir()
    return removed


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # a busy one has no room for another connection
    return True


class ControlServer:
    """Listens on a Unix socket for this user alone, and queues what it hears.

    Args:
        path: Where to listen, if that is safe (:func:`private_socket_path`); a socket left by an earlier worker is
            replaced.
        controls: Where commands go.
        status: Fields that answer a ``ping``.

    Raises:
        UserError: If the socket cannot be made.
    """

    def __init__(self, path: Path, controls: Controls, status: Callable[[], dict[str, Any]]) -> None:
        self._controls = controls
        self._status = status
        self._closed = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            remove_stale_sockets()
            self._wanted, path = path, private_socket_path(path)
            # Under another name until it listens: a socket that refuses is one of a worker that is gone.
            hidden = path.with_name(f".{os.getpid()}")
            hidden.unlink(missing_ok=True)
            mask = os.umask(0o177)
            try:
                self._listener.bind(str(hidden))
            finally:
                os.umask(mask)
            self._listener.listen(8)
            os.replace(hidden, path)
            self.path = path
            """Where it listens."""
        except OSError as error:
            self._listener.close()
            raise UserError(
                f"The control socket {path} cannot be made: {error}.",
                "Put LOCALTUNE_HOME on a local file system, or set XDG_RUNTIME_DIR.",
            ) from error
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._closed.set()
        self.path.unlink(missing_ok=True)
        if self.path != self._wanted:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._closed.wait(ACCEPT_SECONDS):
                    return
                log(f"control socket: {error}")
                continue
            if peer_uid(connection) != os.getuid():
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="control-peer", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        lock = threading.Lock()
        running: list[Command] = []

        def send(message: dict[str, Any]) -> None:
            with lock:
                try:
                    connection.sendall(encode_message(message))
                except OSError:
                    # A peer that has gone, or does not read, holds up training once at most.
                    with contextlib.suppress(OSError):  # it may be closed already
                        connection.shutdown(socket.SHUT_RDWR)

        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        with connection, connection.makefile("rb") as lines:
            try:
                while line := lines.readline(LINE_LIMIT + 1):
                    if len(line) > LINE_LIMIT:
                        send({"id": None, "ok": False, "error": "The line is too long.", "hint": ""})
                        break
                    self._hear(line, send, running)
            except OSError as error:
                log(f"control connection: {error}")
            for command in running:
                command.cancelled.set()

    def _hear(self, line: bytes, send: Callable[[dict[str, Any]], None], running: list[Command]) -> None:
        try:
            request = decode_request(line)
        except ProtocolError as error:
            send({"id": None, "ok": False, "error": f"Not understood: {error}.", "hint": ""})
            return
        command = Command(request, send)
        if request.command == "ping":
            command.answer(**self._status())
        elif request.command in COMMANDS:
            running[:] = [other for other in running if not other.answered]
            running.append(command)
            self._controls.put(command)
        else:
            command.refuse(
                f"There is no command {one_line(request.command, 80)}.", f"Commands are {', '.join(COMMANDS)}."
            )

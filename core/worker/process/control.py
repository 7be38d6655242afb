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
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from core.errors import UserError
from core.runs.control.protocol import (
    COMMANDS,
    LINE_LIMIT,
    ProtocolError,
    Request,
    decode_request,
    encode_message,
    peer_uid,
)
from core.runs.record.state import PENDING
from core.runs.record.store import RUNTIME_SOCKETS, is_private, made_directories, private_socket_path, runtime_dir
from core.text import one_line
from core.worker.process.log import log

#: Seconds a peer may take to read its answer.
SEND_SECONDS = 5
#: Maximum number of pending commands; a person gives one at a time.
WAITING_LIMIT = 100
#: Seconds between two attempts to accept a connection when the system has no resources for it.
ACCEPT_SECONDS = 0.5
#: Signals that request a stop after a checkpoint. SIGUSR1 is for Slurm, whose srun passes it to the processes but kills
#: them at SIGTERM.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """Raised at a point where the run can stop, as requested by ``sender``; with ``now``, nothing is saved."""

    def __init__(self, sender: str, *, now: bool = False) -> None:
        super().__init__(sender)
        self.sender = sender
        self.now = now


class EvaluationSkipped(Exception):  # noqa: N818 - a request, not an error
    """Raised between two passes of an evaluation that should be skipped."""


class ParkRequested(StopRequested):
    """Raised where a run can stop when it must give its device back: it stops after a checkpoint, and continues later.

    Args:
        sender: Source of the request.
        cause: Reason, as the end of a sentence: ``ollama is running``; empty if a person asked.
    """

    def __init__(self, sender: str, cause: str = "") -> None:
        super().__init__(sender)
        self.cause = cause
        self.paused = False
        """True if the user has paused the run."""


@dataclass(eq=False)
class Command:
    """A request waiting for the training thread."""

    request: Request
    send: Callable[[dict[str, Any]], None]
    """Sends one line to the peer; does nothing once the peer is gone."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the peer closes the connection."""
    answered: bool = False
    taken_back: tuple[str, ...] = ()
    """Pending requests that this one withdrew on arrival."""

    def answer(self, **fields: Any) -> None:
        """Answer with success."""
        self.answered = True
        self.send({"id": self.request.id, "ok": True, **fields})

    def refuse(self, error: str, hint: str = "", **fields: Any) -> None:
        """Answer with an error."""
        self.answered = True
        self.send({"id": self.request.id, "ok": False, "error": error, "hint": hint, **fields})

    def token(self, text: str, source: str) -> None:
        """Send a piece of a generated answer, with the weights that produced it."""
        self.send({"id": self.request.id, "token": text, "source": source})

    def say_scores(self, message: dict[str, Any]) -> None:
        """Send the log-probabilities of tokens whose text comes next."""
        self.send({"id": self.request.id, **message})


class Controls:
    """Queue of commands for the training thread.

    Only the training thread carries out commands, so none meets half a step. Pending requests are visible at once in
    :attr:`pending`, and can be withdrawn until they are carried out.
    """

    def __init__(self) -> None:
        self._guard = threading.Condition()
        self._waiting: deque[Command] = deque()
        self._at_work: Command | None = None
        self._stops: dict[str, bool] = {}
        self._parks: dict[str, str] = {}
        self._stopping = False
        self._closed = False
        self.changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Gets an item whenever a request arrives or is withdrawn."""

    @property
    def stop_sender(self) -> str | None:
        """Source of the first stop request, or None."""
        return next(iter(list(self._stops)), None)

    @property
    def is_leaving(self) -> bool:
        """True if the run should stop or give its device back."""
        return bool(self._stops or self._parks)

    @property
    def pending(self) -> tuple[str, ...]:
        """Requests of :data:`PENDING` that wait for the training thread or are being carried out."""
        with self._guard:
            names: set[str] = set()
            for command in (*([self._at_work] if self._at_work is not None else []), *self._waiting):
                names.add(command.request.command)
                if command.request.command == "resume":
                    names.discard("pause")  # it has no effect
        asked = {"stop": self._stops, "park": self._parks}
        return tuple(name for name in PENDING if name in names or asked.get(name))

    @property
    def waiting_count(self) -> int:
        """Number of pending commands."""
        return len(self._waiting)

    def put(self, command: Command) -> None:
        """Queue a command from another thread. A stop takes effect at once, wherever the run is."""
        name = command.request.command
        answers: list[Callable[[], None]] = []
        with self._guard:
            if self._closed:
                answers.append(partial(command.refuse, "The run has ended."))
            elif name == "withdraw":
                answers += self._withdraw(command)
            else:
                if name == "stop":
                    self._stops.setdefault("socket", False)
                    self._stops["socket"] |= command.request.args.get("now") is True
                if name == "park":
                    self._parks.setdefault("socket", "")
                if len(self._waiting) < WAITING_LIMIT:
                    self._append(command)
                elif name in ("stop", "park"):
                    answers.append(command.answer)
                else:
                    hint = "Try again when the training has got to them."
                    answers.append(partial(command.refuse, "Too many commands are waiting.", hint))
        self.changes.put(None)
        for answer in answers:  # outside the lock, because a peer may be slow to read
            answer()

    def _append(self, command: Command) -> None:
        self._waiting.append(command)
        self._guard.notify()

    def _withdraw(self, command: Command) -> list[Callable[[], None]]:
        """Carry out a ``withdraw`` at once, which is queued only to be recorded; returns the answers to all senders."""
        asked = command.request.args.get("what")
        if asked is not None and asked not in PENDING:
            hint = f"These can be: {', '.join(PENDING)}."
            return [partial(command.refuse, f"{one_line(str(asked), 80)} cannot be taken back.", hint)]
        names: tuple[str, ...] = PENDING if asked is None else (asked,)
        if "stop" in names and self._stops and (self._stopping or set(self._stops) != {"socket"}):
            if asked == "stop":
                if self._stopping:
                    return [partial(command.refuse, "The run is stopping already.", "It can be continued.")]
                sender = next(name for name in self._stops if name != "socket")
                return [partial(command.refuse, f"The stop was asked for by {sender}, and cannot be taken back.")]
            names = tuple(name for name in names if name != "stop")
        taken = [other for other in self._waiting if other.request.command in names and not other.answered]
        self._waiting = deque(other for other in self._waiting if other not in taken)
        command.taken_back = tuple(name for name in names if name in {other.request.command for other in taken})
        asked_by: dict[str, dict[str, Any]] = {"stop": self._stops, "park": self._parks}
        for name, senders in asked_by.items():
            if name in names and senders.pop("socket", None) is not None and name not in command.taken_back:
                command.taken_back += (name,)
        answers: list[Callable[[], None]] = [
            partial(other.refuse, "It was taken back.", withdrawn=True) for other in taken
        ]
        answers.append(partial(command.answer, withdrawn=list(command.taken_back)))
        if command.taken_back and len(self._waiting) < WAITING_LIMIT:
            self._append(command)
        return answers

    def request_stop(self, sender: str, *, now: bool = False) -> None:
        """Request a stop; safe in a signal handler.

        Args:
            sender: Source of the request; the first one is reported.
            now: Stop without a checkpoint, even if an earlier request wanted one.
        """
        # No lock, because the interrupted code may hold it; each of these operations is atomic.
        self._stops.setdefault(sender, now)
        if now:
            self._stops[sender] = now
        self.changes.put(None)

    def request_park(self, sender: str, cause: str) -> None:
        """Request that the run gives its device back.

        Args:
            sender: Source of the request; the first one is reported.
            cause: Reason, as the end of a sentence.
        """
        with self._guard:
            self._parks.setdefault(sender, cause)
        self.changes.put(None)

    def drop_park(self) -> None:
        """Forget park requests: the device cannot be given back now, because the checkpoint was not written."""
        with self._guard:
            self._parks.clear()
            self._stopping = False
        self.changes.put(None)

    def check_stop(self) -> None:
        """Raise if a stop was requested, in phases without anything to save. From then on it cannot be withdrawn.

        Raises:
            StopRequested: If a stop was requested.
            ParkRequested: If the run should give its device back instead.
        """
        with self._guard:
            sender, parks = self.stop_sender, list(self._parks.items())
            if sender is None and not parks:
                return
            self._stopping = True
            now = any(list(self._stops.values()))
        if sender is None:
            raise ParkRequested(*parks[0])
        raise StopRequested(sender, now=now)

    def waiting(self) -> Iterator[Command]:
        """Pending commands, in order."""
        while (command := self._next()) is not None:
            yield command

    def wait(self, seconds: float) -> Command | None:
        """The next command, or None after ``seconds`` without one (or at once after a stop signal)."""
        deadline = time.monotonic() + seconds
        while (command := self._next()) is None:
            left = deadline - time.monotonic()
            if left <= 0 or self.is_leaving:
                return None
            with self._guard:
                if not self._waiting:
                    self._guard.wait(min(left, 0.2))
        return command

    def rest(self, seconds: float) -> bool:
        """Sleep for ``seconds`` unless a request arrives; returns True if none did."""
        with self._guard:
            return not self._guard.wait_for(lambda: bool(self._waiting or self._stops), seconds)

    def _next(self) -> Command | None:
        with self._guard:
            self._at_work = self._waiting.popleft() if self._waiting else None
            return self._at_work

    def done(self) -> None:
        """Mark the last command as carried out."""
        with self._guard:
            self._at_work = None

    def close(self, reason: str = "The run has ended.", hint: str = "", *, met: Collection[str] = ()) -> None:
        """Refuse all pending and later commands.

        Args:
            reason: Error message.
            hint: Advice for the user.
            met: Pending commands that succeed anyway, because their effect comes anyway.
        """
        with self._guard:
            self._closed = True
        for command in self.waiting():
            if command.answered:
                continue
            if command.request.command == "stop":
                command.answer(state="over")
            elif command.request.command == "park" or command.request.command in met:
                command.answer(state="parked")
            else:
                command.refuse(reason, hint)


def install_signals(controls: Controls) -> None:
    """Stop after a checkpoint on :data:`STOP_SIGNALS`; ignore SIGHUP, because the terminal may close."""

    def stop(number: int, _frame: FrameType | None) -> None:
        controls.request_stop(signal.Signals(number).name)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def remove_stale_sockets() -> list[Path]:
    """Remove sockets outside of run directories left by killed workers of this user; returns them.

    A socket in a run directory is replaced by the next worker of that run.
    """
    removed: list[Path] = []
    made = made_directories()
    for directory in [*([runtime_dir()] if is_private(runtime_dir()) else []), *made]:
        for path in directory.glob(RUNTIME_SOCKETS):
            with contextlib.suppress(OSError):  # it may be gone by now, or belong to another user
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
            return True  # a busy server has no room for another connection
    return True


class ControlServer:
    """Listens on a Unix socket for this user only, and queues commands.

    Args:
        path: Socket path, if that is safe (:func:`private_socket_path`); a socket of an earlier worker is replaced.
        controls: Queue for commands.
        status: Fields of the answer to a ``ping``.

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
            # Created under another name until it listens: a socket that refuses belongs to a dead worker.
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
            """Path of the socket."""
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
                    # A peer that is gone or does not read delays training at most once.
                    with contextlib.suppress(OSError):  # possibly closed already
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

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
from collections.abc import Callable, Collection, Iterator, Sequence
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

#: Seconds that a peer may take to read what it has asked for.
SEND_SECONDS = 5
#: Commands that wait at most; a person gives one at a time.
WAITING_LIMIT = 100
#: Seconds between two tries to accept a connection when the system has no room for one.
ACCEPT_SECONDS = 0.5
#: Signals that ask for a stop after a checkpoint. SIGUSR1 is for Slurm: its srun passes that one on to the processes,
#: and kills them at SIGTERM.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequested(Exception):  # noqa: N818 - it is a request, not an error
    """Raised at a point where the run can stop; ``sender`` asked for it, and with ``now`` nothing is saved."""

    def __init__(self, sender: str, *, now: bool = False) -> None:
        super().__init__(sender)
        self.sender = sender
        self.now = now


class EvaluationSkipped(Exception):  # noqa: N818 - it is a request, not an error
    """Raised between two passes of an evaluation that is to be left out."""


class ParkRequested(StopRequested):
    """Raised where a run can stop when it is to give its device back: it stops after a checkpoint, and goes on later.

    Args:
        sender: Who asked for it.
        cause: Why, as the end of a sentence: ``ollama is running``; empty where somebody asked.
    """

    def __init__(self, sender: str, cause: str = "") -> None:
        super().__init__(sender)
        self.cause = cause
        self.paused = False
        """Whether the user has paused the run."""


@dataclass(eq=False)
class Command:
    """A request that waits for the training thread."""

    request: Request
    send: Callable[[dict[str, Any]], None]
    """Sends one line to the asker; quietly does nothing when it has gone."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the asker has closed the connection."""
    answered: bool = False
    taken_back: tuple[str, ...] = ()
    """Pending requests that this one took back when it arrived."""

    def answer(self, **fields: Any) -> None:
        """Answer with success."""
        self.answered = True
        self.send({"id": self.request.id, "ok": True, **fields})

    def refuse(self, error: str, hint: str = "", **fields: Any) -> None:
        """Answer with a sentence that says why not."""
        self.answered = True
        self.send({"id": self.request.id, "ok": False, "error": error, "hint": hint, **fields})

    def token(self, text: str, source: str) -> None:
        """Send a piece of an answer that is being generated, and which weights say it."""
        self.send({"id": self.request.id, "token": text, "source": source})


class Controls:
    """The queue between those who ask and the training thread.

    Only the training thread carries out commands, so that none of them meets half a step. What waits for that is told
    at once, by :attr:`pending`, and can be taken back until it is carried out.
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
        """Gets an item whenever a request has arrived or was taken back."""

    @property
    def stop_sender(self) -> str | None:
        """Who asked for the stop, or None; the first one, if several did."""
        return next(iter(list(self._stops)), None)

    @property
    def is_leaving(self) -> bool:
        """Whether the run is to stop, or to give its device back."""
        return bool(self._stops or self._parks)

    @property
    def pending(self) -> tuple[str, ...]:
        """The requests that wait for the training thread or are being carried out, of :data:`PENDING`."""
        with self._guard:
            names: set[str] = set()
            for command in (*([self._at_work] if self._at_work is not None else []), *self._waiting):
                names.add(command.request.command)
                if command.request.command == "resume":
                    names.discard("pause")  # it comes to nothing
        asked = {"stop": self._stops, "park": self._parks}
        return tuple(name for name in PENDING if name in names or asked.get(name))

    @property
    def waiting_count(self) -> int:
        """Number of commands that wait."""
        return len(self._waiting)

    def put(self, command: Command) -> None:
        """Queue a command from another thread; a stop is seen at once, wherever the run is."""
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
        for answer in answers:  # a peer may be slow to read, and the training thread does not wait for it
            answer()

    def _append(self, command: Command) -> None:
        self._waiting.append(command)
        self._guard.notify()

    def _take_back(self, command: Command, names: Sequence[str]) -> list[Callable[[], None]]:
        """Take waiting requests back; returns the answers to those who asked for them."""
        taken = [other for other in self._waiting if other.request.command in names and not other.answered]
        self._waiting = deque(other for other in self._waiting if other not in taken)
        command.taken_back = tuple(name for name in names if name in {other.request.command for other in taken})
        return [partial(other.refuse, "It was taken back.", withdrawn=True) for other in taken]

    def _withdraw(self, command: Command) -> list[Callable[[], None]]:
        """Carry out a ``withdraw``, which waits for nothing; it is queued only to be recorded."""
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
        answers = self._take_back(command, names)
        if "stop" in names and self._stops.pop("socket", None) is not None and "stop" not in command.taken_back:
            command.taken_back += ("stop",)
        if "park" in names and self._parks.pop("socket", None) is not None and "park" not in command.taken_back:
            command.taken_back += ("park",)
        answers.append(partial(command.answer, withdrawn=list(command.taken_back)))
        if command.taken_back and len(self._waiting) < WAITING_LIMIT:
            self._append(command)
        return answers

    def request_stop(self, sender: str, *, now: bool = False) -> None:
        """Ask for a stop; safe in a signal handler.

        Args:
            sender: Who asks; the first one is told.
            now: Without a checkpoint, even where one with a checkpoint has been asked for before.
        """
        # No lock, which the interrupted code may hold; each of these is one step for the interpreter.
        self._stops.setdefault(sender, now)
        if now:
            self._stops[sender] = now
        self.changes.put(None)

    def request_park(self, sender: str, cause: str) -> None:
        """Ask the run to give its device back.

        Args:
            sender: Who asks; the first one is told.
            cause: Why, as the end of a sentence.
        """
        with self._guard:
            self._parks.setdefault(sender, cause)
        self.changes.put(None)

    def drop_park(self) -> None:
        """The device cannot be given back now: the checkpoint was not written."""
        with self._guard:
            self._parks.clear()
            self._stopping = False
        self.changes.put(None)

    def check_stop(self) -> None:
        """Raise if a stop was asked for: called in the phases that have nothing to save. From then on it is under way,
        and cannot be taken back.

        Raises:
            StopRequested: If so.
            ParkRequested: If the run is to give its device back, and not to end.
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
        """The commands that wait now, in order."""
        while (command := self._next()) is not None:
            yield command

    def wait(self, seconds: float) -> Command | None:
        """The next command, or None after ``seconds`` without one (or at once when a signal has asked for a stop)."""
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
        """Wait while nothing is asked for, so long at most; whether that was so."""
        with self._guard:
            return not self._guard.wait_for(lambda: bool(self._waiting or self._stops), seconds)

    def _next(self) -> Command | None:
        with self._guard:
            self._at_work = self._waiting.popleft() if self._waiting else None
            return self._at_work

    def done(self) -> None:
        """The command taken last has been carried out."""
        with self._guard:
            self._at_work = None

    def close(self, reason: str = "The run has ended.", hint: str = "", *, met: Collection[str] = ()) -> None:
        """Refuse what still waits and all that comes.

        Args:
            reason: Why, a sentence.
            hint: What to do.
            met: Waiting commands that are answered all the same, as what they ask for comes anyway.
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
    """Stop after a checkpoint at one of :data:`STOP_SIGNALS`; SIGHUP means nothing (the terminal may go)."""

    def stop(number: int, _frame: FrameType | None) -> None:
        controls.request_stop(signal.Signals(number).name)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
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

"""Commands over standard input and output (:mod:`core.runs.control.protocol`), carried out one by one.

``ping`` and ``cancel`` (with the ``id`` of a command) are answered at once, even during another command. The process
ends when its input is closed.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from core.errors import UserError
from core.helper import private_output, tie_to_parent
from core.runs.control.protocol import LINE_LIMIT, ProtocolError, Request, decode_request, encode_message, refusal


@dataclass(frozen=True)
class Call:
    """A command in progress."""

    args: dict[str, Any]
    tell: Callable[[dict[str, Any]], None]
    """Sends a message before the answer."""
    cancelled: Callable[[], bool]
    """Returns True if the command should end early."""


#: Carries out a command: returns the fields of its answer, or raises a ``UserError``.
Handler = Callable[[Call], dict[str, Any]]


@dataclass
class CommandServer:
    """Carries out commands on the main thread while another thread reads them.

    Args:
        name: Name of the process, as the beginning of a sentence: ``The reader``.
        handlers: Handler of each command.
        requests: Stream of requests.
        answers: Stream of answers.
    """

    name: str
    handlers: Mapping[str, Handler]
    requests: IO[bytes]
    answers: IO[bytes]
    _writing: threading.Lock = field(default_factory=threading.Lock, init=False)
    _queue: queue.Queue[tuple[Request, threading.Event]] = field(default_factory=queue.Queue, init=False)
    _cancelled: dict[str, threading.Event] = field(default_factory=dict, init=False)

    def serve(self) -> None:
        """Serve until the process ends with its input."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while True:
            self._carry_out(*self._queue.get())

    def _read(self) -> None:
        while line := self.requests.readline(LINE_LIMIT + 1):
            try:
                if len(line) > LINE_LIMIT:
                    raise ProtocolError("the line is too long")
                self._hear(decode_request(line))
            except ProtocolError as error:
                self._send({"id": None, "ok": False, "error": f"Not understood: {error}.", "hint": ""})
        # The parent is gone. The main thread may be in a long call, and there is nothing to save.
        os._exit(0)

    def _hear(self, request: Request) -> None:
        """On the reading thread: answer at once if possible, else queue."""
        if request.command == "ping":
            self._send({"id": request.id, "ok": True, "pid": os.getpid()})
        elif request.command == "cancel":
            event = self._cancelled.get(str(request.args.get("id")))
            if event is not None:
                event.set()
            self._send({"id": request.id, "ok": True, "found": event is not None})
        elif request.command in self.handlers:
            event = self._cancelled[request.id] = threading.Event()
            self._queue.put((request, event))
        else:
            known = ", ".join((*self.handlers, "cancel", "ping"))
            self._refuse(request, UserError(f"There is no command {request.command}.", f"Commands are {known}."))

    def _carry_out(self, request: Request, cancelled: threading.Event) -> None:
        call = Call(request.args, lambda message: self._send({"id": request.id, **message}), cancelled.is_set)
        try:
            self._send({"id": request.id, "ok": True, **self.handlers[request.command](call)})
        except UserError as error:
            self._refuse(request, error)
        except Exception as error:
            # A bug, or an unexpected failure of a library: it costs this answer, not the process.
            traceback.print_exc()
            failed = f"{self.name} failed: {type(error).__name__}: {error}"
            self._refuse(request, UserError(failed, "Its log has the details."))
        finally:
            # Another command may have the same id.
            if self._cancelled.get(request.id) is cancelled:
                del self._cancelled[request.id]

    def _refuse(self, request: Request, error: UserError) -> None:
        self._send({"id": request.id, "ok": False, **refusal(error)})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            with self._writing:
                self.answers.write(encode_message(message))
                self.answers.flush()
        except OSError:
            os._exit(0)  # the parent is gone


def private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for this process's own messages; ties the process to its parent.

    Output printed by libraries goes to the log, and their prompts get no answer.
    """
    tie_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(0), "rb")
    answers = private_output()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    reconfigure = getattr(sys.stderr, "reconfigure", None)  # a plain stream under some wrappers
    if reconfigure is not None:
        reconfigure(line_buffering=True, errors="backslashreplace")
    return requests, answers

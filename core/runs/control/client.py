"""Control client: sends commands to a live run over its worker's control socket."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

from core.errors import UserError
from core.runs.control import protocol
from core.runs.control.protocol import Ways, by_command
from core.runs.record.state import RunState, in_words, infer_state
from core.runs.record.store import Run, way_on
from core.text import one_line

#: Timeout in seconds of the connection itself; the worker's listener never waits for a training step.
CONNECT_SECONDS = 5.0
#: Seconds that a worker may take to replace its program, when a run is parked or resumed.
CHANGE_SECONDS = 20.0
#: Timeout in seconds of an answer: a command is executed between two steps, and a step may be long.
ANSWER_SECONDS = 60.0
#: Most bytes of the answers to one command; the longest answer of a model has far fewer.
EXCHANGE_LIMIT = 64 << 20
_CHUNK_BYTES = 64 << 10


class WithdrawnError(UserError):
    """A request was withdrawn before the worker executed it."""


class PendingError(UserError):
    """A request was not answered in time, but was received, and waits for the end of a step."""


class ControlClient:
    """Client of one run. Each command has a connection of its own, so a late answer is never taken for another's.

    Methods block and belong in a thread; ``close`` may be called from any other.

    Args:
        run: The run.
        timeout: Seconds to wait for an answer, or between two tokens.
        ways: Puts the action that helps after a refusal into words.
    """

    def __init__(self, run: Run, *, timeout: float = ANSWER_SECONDS, ways: Ways = by_command) -> None:
        self.run = run
        self.timeout = timeout
        self._ways = ways
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._closed = False

    def request(self, command: str, **args: Any) -> dict[str, Any]:
        """Execute one command.

        Args:
            command: Name in :data:`core.runs.control.protocol.COMMANDS`.
            **args: Its arguments.

        Returns:
            The answer, without ``id`` and ``ok``.

        Raises:
            UserError: If the run is not live, refuses, does not answer in time or answers nonsense.
        """
        for message in self._exchange(command, args):
            if "ok" in message:
                return self._accept(message)
        raise AssertionError("unreachable: an exchange ends with an answer or an error")

    def generate(self, args: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Generate an answer with the run's model.

        Args:
            args: ``messages``, ``source`` and the settings of the generation.

        Yields:
            ``{"token": text}`` for each piece, with ``source`` if the worker sends it, and ``{"logprobs": list}``
            before the pieces of a request for them, then the answer. The text is as
            the model wrote it: sanitize it to show it. Closing the iterator (or the client) before its end cancels the
            generation.

        Raises:
            UserError: As :meth:`request`.
        """
        for message in self._exchange("generate", args):
            if "ok" in message:
                yield self._accept(message)
                return
            if isinstance(message.get("logprobs"), list):
                yield {"logprobs": message["logprobs"]}
            if isinstance(message.get("token"), str):
                source = message.get("source")
                yield {"token": message["token"], **({"source": source} if isinstance(source, str) else {})}

    def close(self) -> None:
        """Cancel all requests; waiting calls end with an error. The client accepts no more commands."""
        with self._guard:
            self._closed = True
            connections = list(self._open)
        for connection in connections:
            # The peer may have closed first; then there is nothing to shut down.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, command: str, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send one request and yield the messages with its id, the answer last."""
        request = protocol.Request(uuid.uuid4().hex, command, args)
        connection = self._connect()
        try:
            try:
                connection.settimeout(self.timeout)
                connection.sendall(protocol.encode_request(request))
            except OSError as error:
                raise self._broken(command, error) from error
            for message in self._messages(connection, request):
                yield message
                if "ok" in message:
                    return
        finally:
            with self._guard:
                self._open.discard(connection)
            connection.close()

    def _connect(self) -> socket.socket:
        if self._closed:
            raise self._was_closed()
        path = self._socket_path()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(path)
            owner = protocol.peer_uid(connection)
            if owner != os.getuid():
                raise UserError(
                    f"The control socket of run {self.run.id} is served by another user (uid {owner}).",
                    "Do not use it; remove it and look who made it.",
                )
            with self._guard:
                if self._closed:
                    raise self._was_closed()
                self._open.add(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, ValueError):  # a lone surrogate in the path
                raise self._unreachable(OSError(None, "its path is none")) from error
            if isinstance(error, OSError):
                raise self._unreachable(error) from error
            raise
        return connection

    def _socket_path(self) -> str:
        """Path of the run's socket; waits while its process changes from one program to the next."""
        deadline = time.monotonic() + CHANGE_SECONDS
        while True:
            recorded = RunState.read(self.run.state_path)
            changes = recorded is not None and (recorded.parked or recorded.state == "starting")
            if recorded is None or recorded.socket is not None or not changes:
                break
            if infer_state(recorded).is_over or time.monotonic() >= deadline or self._closed:
                break
            time.sleep(0.02)
        return (recorded.socket if recorded else None) or str(self.run.socket_path)

    def _messages(self, connection: socket.socket, request: protocol.Request) -> Iterator[dict[str, Any]]:
        """Messages in answer to a request. The timeout starts again with each piece of a streamed answer."""
        command, pending, received = request.command, bytearray(), 0
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                connection.settimeout(left)
                data = connection.recv(_CHUNK_BYTES)
            except OSError as error:
                raise self._broken(command, error) from error
            if not data:
                raise self._broken(command, None)
            searched = len(pending)
            pending += data
            received += len(data)
            while (end := pending.find(b"\n", searched)) >= 0:
                line = bytes(pending[:end])
                del pending[: end + 1]
                searched = 0
                try:
                    message = protocol.decode_message(line)
                except protocol.ProtocolError as error:
                    raise self._garbage() from error
                # A worker that could not read the request's id answers without one.
                if message.get("id") in (request.id, None):
                    yield message
                    if command == "generate":
                        deadline = time.monotonic() + self.timeout
            if len(pending) > protocol.LINE_LIMIT or received > EXCHANGE_LIMIT:
                raise self._garbage()

    def _accept(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["ok"] is True:
            return {key: value for key, value in message.items() if key not in ("id", "ok")}
        sentence, hint = message.get("error"), message.get("hint")
        said = one_line(sentence) if isinstance(sentence, str) and sentence else f"Run {self.run.id} refused."
        advised = one_line(hint) if isinstance(hint, str) else ""
        if message.get("withdrawn") is True:
            raise WithdrawnError(said, advised)
        raise protocol.refused(said, advised, message, self.run.id, self._ways)

    def _unreachable(self, error: OSError) -> UserError:
        if isinstance(error, PermissionError):
            return UserError(
                f"The control socket of run {self.run.id} belongs to another user.", "Use the account that started it."
            )
        state = self.run.state()
        if state.is_over:
            return UserError(
                f"Run {self.run.id} {in_words(state.state)}; only a live run takes commands.",
                way_on(self.run)
                if state.state != "finished"
                else f"'localtune-tui chat {self.run.id}' talks to its result.",
            )
        if state.state in ("queued", "starting"):
            return UserError(f"Run {self.run.id} is still starting and takes no commands yet.", "Try again shortly.")
        detail = "no sign of life" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return UserError(
            f"Run {self.run.id} is {state.state}, but its control socket cannot be reached ({detail}).",
            f"{self._ways('stop', self.run.id)} ends it by signal; its log is {self.run.log_path}.",
        )

    def _broken(self, command: str, error: OSError | None) -> UserError:
        if self._closed:
            return self._was_closed()
        state = self.run.state()
        if isinstance(error, TimeoutError):
            sentence = f"Run {self.run.id} did not answer {command} within {self.timeout:g} s."
            if command in state.pending and not state.is_over:
                return PendingError(sentence, "It was heard, and is done when the present step ends.")
            return UserError(
                sentence, "It takes commands between steps: wait for the step to end, or look into its log."
            )
        ending = f"; it {in_words(state.state)}" if state.is_over else ""
        return UserError(
            f"Run {self.run.id} ended the connection before it answered {command}{ending}.",
            f"Its log is {self.run.log_path}.",
        )

    def _was_closed(self) -> UserError:
        return UserError(f"The connection to run {self.run.id} was closed.")

    def _garbage(self) -> UserError:
        return UserError(
            f"What answers on the control socket of run {self.run.id} does not speak its protocol.",
            "If localtune-tui was updated while the run was on, stop the run and continue it.",
        )

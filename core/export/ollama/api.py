"""Requests to Ollama's server on this machine: https://docs.ollama.com/api."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from core.errors import UserError
from core.export.ollama.server import Address
from core.jobs.job import JobCancelledError
from core.text import one_line

#: Longest line and longest whole of an answer, in bytes.
_LONGEST_LINE, _LONGEST = 1 << 20, 16 << 20
_CONNECT_SECONDS, _SHOW_SECONDS = 5.0, 30.0
_LOG = "Look at the server's log: 'journalctl -u ollama'."


class _Request:
    """One request, whose connection is cut when the user cancels.

    Args:
        address: The server.
        path: The path of the request.
        body: Its JSON.
        seconds: Longest time without a byte.
        cancel: Cuts the connection when it is set.

    Raises:
        UserError: If there is no response; as all methods.
        JobCancelledError: If it was cancelled; as all methods.
    """

    def __init__(
        self, address: Address, path: str, body: Mapping[str, Any], seconds: float, cancel: threading.Event | None
    ) -> None:
        self._address, self._seconds, self._cancel = address, seconds, cancel
        self._is_done = threading.Event()
        self._watcher: threading.Thread | None = None
        self._connection = http.client.HTTPConnection(address.host, address.port, timeout=_CONNECT_SECONDS)
        try:
            with self._errors():
                self._connection.connect()
                self._connection.sock.settimeout(seconds)
                self._watch()
                self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                self._response = self._connection.getresponse()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Request:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def status(self) -> int:
        return self._response.status

    def failure(self) -> UserError:
        """The error that the response is."""
        with self._errors():
            body = self._response.read(_LONGEST_LINE)
        try:
            reason = str(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            reason = f"status {self.status}"
        return UserError(f"Ollama refuses: {one_line(reason, 300).rstrip('.')}.", _LOG)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The objects of the response, one a line."""
        read = 0
        while True:
            with self._errors():
                line = self._response.readline(_LONGEST_LINE)
            if self._cancel is not None and self._cancel.is_set():
                raise JobCancelledError
            if not line:
                return
            read += len(line)
            if read > _LONGEST or not line.endswith(b"\n"):
                raise UserError("Ollama's answer is cut off or has no end.", _LOG)
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError("Ollama's answer is not JSON.", "Is another program at its port?") from error
            if isinstance(value, dict):
                yield value

    def close(self) -> None:
        self._is_done.set()
        if self._watcher is not None:
            self._watcher.join()
        self._connection.close()

    def _watch(self) -> None:
        if self._cancel is None:
            return
        arguments = (self._connection.sock, self._cancel, self._is_done)
        self._watcher = threading.Thread(target=_cut, args=arguments, daemon=True)
        self._watcher.start()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ConnectionRefusedError as error:
            raise UserError(
                f"Ollama's server does not run: nothing listens on {self._address}.",
                "Start it with 'ollama serve', or open the app, and do it again.",
            ) from error
        except TimeoutError as error:
            raise UserError(f"Ollama on {self._address} did not answer for {self._seconds:g} s.", _LOG) from error
        except (OSError, http.client.HTTPException) as error:
            if self._cancel is not None and self._cancel.is_set():
                raise JobCancelledError from error
            reason = one_line(str(error) or type(error).__name__, 200).rstrip(".")
            raise UserError(f"Ollama on {self._address} gave no answer: {reason}.", _LOG) from error


def _cut(sock: socket.socket, cancel: threading.Event, is_done: threading.Event) -> None:
    while not is_done.is_set():
        if cancel.wait(0.1):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            return


def has_model(address: Address, name: str) -> bool:
    """Whether the server has a model of this name.

    Raises:
        UserError: If it does not answer.
    """
    with _Request(address, "/api/show", {"model": name}, _SHOW_SECONDS, None) as request:
        if request.status not in (200, 404):
            raise request.failure()
        return request.status == 200


def chat(
    address: Address,
    name: str,
    prompt: str,
    *,
    most_tokens: int,
    seconds: float,
    cancel: threading.Event | None,
    token: Callable[[str], None] | None,
) -> str:
    """The answer of a model to a question, always with the likeliest tokens.

    Args:
        address: The server.
        name: The model.
        prompt: The question.
        most_tokens: Longest answer.
        seconds: Longest time without a token; loading the model counts as well.
        cancel: Ends the request when it is set.
        token: Called with each piece of the answer.

    Raises:
        UserError: If the server does not answer, or with an error.
        JobCancelledError: If it was cancelled.
    """
    options = {"temperature": 0, "seed": 0, "num_predict": most_tokens}
    body = {"model": name, "messages": [{"role": "user", "content": prompt}], "stream": True, "options": options}
    pieces: list[str] = []
    with _Request(address, "/api/chat", body, seconds, cancel) as request:
        if request.status != 200:
            raise request.failure()
        for line in request.lines():
            if "error" in line:
                raise UserError(f"Ollama did not answer: {one_line(str(line['error']), 300).rstrip('.')}.", _LOG)
            message = line.get("message")
            piece = message.get("content") if isinstance(message, dict) else None
            if isinstance(piece, str) and piece:
                pieces.append(piece)
                if token is not None:
                    token(piece)
            if line.get("done") is True:
                return "".join(pieces)
    raise UserError("Ollama's answer ended in the middle.", _LOG)

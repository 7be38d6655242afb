"""Ollama on this machine: its server on a loopback address, models created there, and a question to them.

The API is https://docs.ollama.com/api.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.directories import Progress
from core.errors import UserError
from core.helper import describe_end
from core.jobs.job import JobCancelledError
from core.text import one_line

#: Characters of the longest name and tag.
_LONGEST_NAME = 80
_OTHER = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})?", re.ASCII)


def model_name(run: str, *, step: int | None = None, quant: str | None = None) -> str:
    """The unique name of an exported run and step, ``20260314-101502-faq:step-120-q8_0``.

    Args:
        run: The run's id.
        step: The step of a checkpoint; None for the result.
        quant: The type of the weights.
    """
    tag = "-".join(filter(None, (None if step is None else f"step-{step}", quant and quant.lower())))
    name = _part(run) or "localtune"
    return f"{name}:{_part(tag)}" if tag else name


def check_name(name: str) -> None:
    """Check that a name is valid in Ollama.

    Raises:
        UserError: If it is not. Names with an owner or a registry are refused as well: nothing is published.
    """
    if _NAME.fullmatch(name) is None or ".." in name:
        raise UserError(
            f"{one_line(name, 80)!r} is no name of a model in Ollama.",
            "Use letters, digits, '_', '-' and '.', with a tag after ':' if you like.",
        )


def _part(text: str) -> str:
    plain = re.sub(r"\.{2,}", ".", _OTHER.sub("-", text)).strip("-.")
    return plain[:_LONGEST_NAME].rstrip("-.")


_PORT = 11434
_SCHEME = "http"
#: Environment variables of the program, without keys and proxies.
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
    """The address of Ollama's server from ``OLLAMA_HOST``, by default port 11434 of 127.0.0.1.

    Args:
        environment: The variables; None: this process's.

    Raises:
        UserError: If it is on another machine, or invalid; names are not resolved.
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


#: Longest line and longest whole of an answer, in bytes.
_LONGEST_LINE, _LONGEST = 1 << 20, 16 << 20
_CONNECT_SECONDS, _SHOW_SECONDS = 5.0, 30.0
_LOG = "Look at the server's log: 'journalctl -u ollama'."


class _Request:
    """A request whose connection is cut if the user cancels.

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
        """The error in the response."""
        with self._errors():
            body = self._response.read(_LONGEST_LINE)
        try:
            reason = str(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            reason = f"status {self.status}"
        return UserError(f"Ollama refuses: {one_line(reason, 300).rstrip('.')}.", _LOG)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The objects of the response, one per line."""
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
    """True if the server has a model of this name.

    Raises:
        UserError: If it does not answer.
    """
    with _Request(address, "/api/show", {"model": name}, _SHOW_SECONDS, None) as request:
        if request.status not in (200, 404):
            raise request.failure()
        return request.status == 200


#: Seconds without output before the program is killed; it copies and hashes many gigabytes silently.
_SILENCE = 900.0
#: Seconds without a token; a large model takes as long to load.
_PATIENCE = 300.0
_TICK = 0.1
#: Bytes kept of the program's output.
_KEPT_BYTES = 16 << 10
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[@-_]")


def create(
    name: str, directory: Path, progress: Progress, *, cancel: threading.Event | None = None, silence: float = _SILENCE
) -> None:
    """Create a model in Ollama; a model of that name is never replaced.

    Args:
        name: The model's name; see :func:`core.export.ollama.create.model_name`.
        directory: Where the Modelfile and the GGUF file are.
        progress: Receives the program's output.
        cancel: Ends the program when it is set; Ollama removes the incomplete model at its next start.
        silence: Seconds without output after which the program is killed.

    Raises:
        UserError: If there is no Ollama, it is on another machine or does not run, has a model of that name, or fails.
        JobCancelledError: If it was cancelled.
    """
    check_name(name)
    if (program := find_ollama()) is None:
        raise UserError(
            "There is no program called ollama on the PATH.",
            "Install Ollama, or copy the directory to where it is and run 'ollama create NAME -f Modelfile' in it.",
        )
    address = server_address()
    if has_model(address, name):
        raise UserError(
            f"Ollama has a model {name} already, which is left as it is.",
            f"Remove it with 'ollama rm {name}', or give another name.",
        )
    command = [str(program), "create", name, "-f", "Modelfile"]
    said = _run(command, directory, address, progress, cancel, silence)
    if not has_model(address, name):
        raise UserError(
            f"Ollama did not create {name}: {_last_line(said)}.", "Look at its server's log: 'journalctl -u ollama'."
        )


def ask(
    name: str,
    prompt: str,
    *,
    most_tokens: int = 128,
    cancel: threading.Event | None = None,
    token: Callable[[str], None] | None = None,
    seconds: float = _PATIENCE,
) -> str:
    """The greedy answer of a model in Ollama to a question. It may have any character.

    Args:
        name: The model.
        prompt: The question.
        most_tokens: Longest answer.
        cancel: Ends the request when it is set.
        token: Called with each piece of the answer.
        seconds: Longest time without a token; loading the model counts as well.

    Raises:
        UserError: If Ollama is on another machine, does not run, or does not answer.
        JobCancelledError: If it was cancelled.
    """
    check_name(name)
    options = {"temperature": 0, "seed": 0, "num_predict": most_tokens}
    body = {"model": name, "messages": [{"role": "user", "content": prompt}], "stream": True, "options": options}
    pieces: list[str] = []
    with _Request(server_address(), "/api/chat", body, seconds, cancel) as request:
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


def _run(
    command: list[str],
    directory: Path,
    address: Address,
    progress: Progress,
    cancel: threading.Event | None,
    silence: float,
) -> str:
    """Run the program; returns the last line of its output.

    Raises:
        UserError: If it cannot be started, fails, or is silent for too long.
        JobCancelledError: If it was cancelled.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=program_environment(address),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error.strerror}.", "Is it Ollama's program?") from error
    if process.stdout is None:
        raise ValueError("The process was started without pipes.")
    with process.stdout as output:
        try:
            said = _follow(output.fileno(), progress, cancel, silence)
            # With its output closed it has nothing more to do.
            status = process.wait(10)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{command[0]} does not end.", "Do it again.") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if status != 0:
        raise UserError(
            f"Ollama could not create the model: {_last_line(said) or 'its program ' + describe_end(status)}.",
            "Its server's log may say more: 'journalctl -u ollama'.",
        )
    return said


def _follow(output: int, progress: Progress, cancel: threading.Event | None, silence: float) -> str:
    said, heard = "", time.monotonic()
    with selectors.DefaultSelector() as selector, contextlib.suppress(BlockingIOError):
        selector.register(output, selectors.EVENT_READ)
        while True:
            if cancel is not None and cancel.is_set():
                raise JobCancelledError
            if not selector.select(_TICK):
                if time.monotonic() - heard > silence:
                    raise UserError(
                        f"Ollama said nothing for {silence:g} s and was ended.",
                        "Look at its server's log: 'journalctl -u ollama'.",
                    )
                continue
            block = os.read(output, 1 << 16)
            if not block:
                break
            heard = time.monotonic()
            said = (said + block.decode("utf-8", "replace"))[-_KEPT_BYTES:]
            if line := _last_line(said):
                progress(f"Ollama: {line}", None, None)
    return said


def _last_line(said: str) -> str:
    """The last line of a program's output, without escape sequences."""
    plain = _CONTROL.sub("\n", said).replace("\r", "\n")
    lines = [line.strip() for line in plain.split("\n") if line.strip()]
    return one_line(lines[-1], 200).rstrip(".") if lines else ""

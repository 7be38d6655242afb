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
import select
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.directories import Progress
from core.errors import UserError
from core.export.request import Quant
from core.helper import describe_end
from core.runs.catalog.trained import TrainedModel
from core.text import last_line, one_line

#: Characters of the longest name and tag.
_LONGEST_NAME = 80
_OTHER = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)


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


def server_address() -> Address:
    """The address of Ollama's server from ``OLLAMA_HOST``, by default port 11434 of 127.0.0.1.

    Raises:
        UserError: If it is on another machine, or invalid; names are not resolved.
    """
    value = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
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


#: Longest line and longest whole of an answer, in bytes.
_LONGEST_LINE, _LONGEST = 1 << 20, 16 << 20
_CONNECT_SECONDS, _SHOW_SECONDS = 5.0, 30.0
_LOG = "Look at the server's log: 'journalctl -u ollama'."


@contextlib.contextmanager
def _posted(address: Address, path: str, body: Mapping[str, Any], seconds: float) -> Iterator[http.client.HTTPResponse]:
    """The response to a request.

    Args:
        address: The server.
        path: The path of the request.
        body: Its JSON.
        seconds: Longest time without a byte.

    Raises:
        UserError: If the server does not answer, or its answer cannot be read.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_CONNECT_SECONDS)
    try:
        connection.connect()
        connection.sock.settimeout(seconds)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        yield connection.getresponse()
    except ConnectionRefusedError as error:
        raise UserError(
            f"Ollama's server does not run: nothing listens on {address}.",
            "Start it with 'ollama serve', or open the app, and do it again.",
        ) from error
    except TimeoutError as error:
        raise UserError(f"Ollama on {address} did not answer for {seconds:g} s.", _LOG) from error
    except (OSError, http.client.HTTPException) as error:
        reason = one_line(str(error) or type(error).__name__, 200).rstrip(".")
        raise UserError(f"Ollama on {address} gave no answer: {reason}.", _LOG) from error
    finally:
        connection.close()


def _failure(response: http.client.HTTPResponse) -> UserError:
    """The error in a response."""
    try:
        reason = str(json.loads(response.read(_LONGEST_LINE))["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = f"status {response.status}"
    return UserError(f"Ollama refuses: {one_line(reason, 300).rstrip('.')}.", _LOG)


def _objects(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of a response, one per line."""
    read = 0
    while line := response.readline(_LONGEST_LINE):
        read += len(line)
        if read > _LONGEST or not line.endswith(b"\n"):
            raise UserError("Ollama's answer is cut off or has no end.", _LOG)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError("Ollama's answer is not JSON.", "Is another program at its port?") from error
        if isinstance(value, dict):
            yield value


def _has_model(address: Address, name: str) -> bool:
    """True if the server has a model of this name."""
    with _posted(address, "/api/show", {"model": name}, _SHOW_SECONDS) as response:
        if response.status not in (200, 404):
            raise _failure(response)
        return response.status == 200


#: Seconds without output before the program is killed; it copies and hashes many gigabytes silently.
_SILENCE = 900.0
#: Seconds without a token; a large model takes as long to load.
_PATIENCE = 300.0
_MOST_TOKENS = 128
#: Bytes kept of the program's output.
_KEPT_BYTES = 16 << 10
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[@-_]")


def create(name: str, directory: Path, progress: Progress) -> None:
    """Create a model in Ollama; a model of that name is never replaced.

    Args:
        name: The model's name; see :func:`core.worker.export.ollama.create.model_name`.
        directory: Where the Modelfile and the GGUF file are.
        progress: Receives the program's output.

    Raises:
        UserError: If there is no Ollama, it is on another machine or does not run, has a model of that name, or fails.
    """
    if (program := find_ollama()) is None:
        raise UserError(
            "There is no program called ollama on the PATH.",
            "Install Ollama, or copy the directory to where it is and run 'ollama create NAME -f Modelfile' in it.",
        )
    address = server_address()
    if _has_model(address, name):
        raise UserError(
            f"Ollama has a model {name} already, which is left as it is.",
            f"Remove it with 'ollama rm {name}', or give another name.",
        )
    said = _run([str(program), "create", name, "-f", "Modelfile"], directory, address, progress)
    if not _has_model(address, name):
        raise UserError(f"Ollama did not create {name}: {_last_line(said)}.", _LOG)


def ask(name: str, prompt: str) -> str:
    """The greedy answer of a model in Ollama to a question. It may have any character.

    Raises:
        UserError: If Ollama is on another machine, does not run, or does not answer.
    """
    options = {"temperature": 0, "seed": 0, "num_predict": _MOST_TOKENS}
    body = {"model": name, "messages": [{"role": "user", "content": prompt}], "stream": True, "options": options}
    answer = ""
    with _posted(server_address(), "/api/chat", body, _PATIENCE) as response:
        if response.status != 200:
            raise _failure(response)
        for line in _objects(response):
            if "error" in line:
                raise UserError(f"Ollama did not answer: {one_line(str(line['error']), 300).rstrip('.')}.", _LOG)
            message = line.get("message")
            piece = message.get("content") if isinstance(message, dict) else None
            answer += piece if isinstance(piece, str) else ""
            if line.get("done") is True:
                return answer
    raise UserError("Ollama's answer ended in the middle.", _LOG)


def _run(command: list[str], directory: Path, address: Address, progress: Progress) -> str:
    """Run the program; returns the end of its output.

    Raises:
        UserError: If it cannot be started, fails, or is silent for too long.
    """
    own = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("OLLAMA_")}
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=own | {"OLLAMA_HOST": f"http://{address}", "NO_PROXY": "*", "TERM": "dumb"},
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
            said = _follow(output.fileno(), progress)
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


def _follow(output: int, progress: Progress) -> str:
    said = ""
    while select.select([output], [], [], _SILENCE)[0]:
        block = os.read(output, 1 << 16)
        if not block:
            return said
        said = (said + block.decode("utf-8", "replace"))[-_KEPT_BYTES:]
        if line := _last_line(said):
            progress(f"Ollama: {line}", None, None)
    raise UserError(f"Ollama said nothing for {_SILENCE:g} s and was ended.", _LOG)


def _last_line(said: str) -> str:
    """The last line of a program's output, without escape sequences."""
    return last_line(_CONTROL.sub("\n", said), 200)


_QUESTION = "Hello!"


def create_and_ask(directory: Path, trained: TrainedModel, quant: Quant, progress: Progress) -> tuple[str, ...]:
    """Create the model in Ollama, if installed, and ask it once. A failure is reported, and the files stay.

    Returns:
        The result, in sentences.
    """
    if find_ollama() is None:
        return ()
    name = model_name(trained.run.id, step=trained.step, quant=quant)
    progress("creating the model in Ollama", None, None)
    try:
        create(name, directory, progress)
        progress("asking the model in Ollama", None, None)
        answer = ask(name, _QUESTION)
    except UserError as error:
        return (f"Ollama was not given the model: {error}",)
    return (f'Ollama has it as {name}; asked "{_QUESTION}" it answers: {one_line(answer, 200) or "nothing"}',)

"""Models created in Ollama from an exported directory, and asked once."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from core.directories import Progress
from core.errors import UserError
from core.export.ollama.api import chat, has_model
from core.export.ollama.names import check_name
from core.export.ollama.server import Address, find_ollama, program_environment, server_address
from core.helper import describe_end
from core.jobs.job import JobCancelledError
from core.text import one_line

#: Seconds without a word from the program before it is ended; it copies and hashes many gigabytes without one.
_SILENCE = 900.0
#: Seconds without a token; a large model takes as long to load.
_PATIENCE = 300.0
_TICK = 0.1
#: Bytes kept of what the program prints.
_KEPT = 16 << 10
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[@-_]")
_MISSING = UserError(
    "There is no program called ollama on the PATH.",
    "Install Ollama, or copy the directory to where it is and run 'ollama create NAME -f Modelfile' in it.",
)


def create(
    name: str,
    directory: Path,
    progress: Progress,
    *,
    cancel: threading.Event | None = None,
    silence: float = _SILENCE,
) -> None:
    """Create a model in Ollama; one of that name is never replaced.

    Args:
        name: The model's name; see :func:`core.export.ollama.names.model_name`.
        directory: Where the Modelfile and the GGUF file are.
        progress: Gets what the program says.
        cancel: Ends the program when it is set; Ollama removes what it has of the model at its next start.
        silence: Seconds without a word after which the program is ended.

    Raises:
        UserError: If there is no Ollama, it is on another machine or does not run, has a model of that name, or fails.
        JobCancelledError: If it was cancelled.
    """
    check_name(name)
    program, address = _program(), server_address()
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
    """The answer of a model in Ollama to one question, with the likeliest tokens. It may have any character.

    Args:
        name: The model.
        prompt: The question.
        most_tokens: Longest answer.
        cancel: Ends the request when it is set.
        token: Called with each piece of the answer.
        seconds: Longest time without a token.

    Raises:
        UserError: If Ollama is on another machine, does not run, or does not answer.
        JobCancelledError: If it was cancelled.
    """
    check_name(name)
    return chat(server_address(), name, prompt, most_tokens=most_tokens, seconds=seconds, cancel=cancel, token=token)


def _program() -> Path:
    found = find_ollama()
    if found is None:
        raise _MISSING
    return found


def _run(
    command: list[str],
    directory: Path,
    address: Address,
    progress: Progress,
    cancel: threading.Event | None,
    silence: float,
) -> str:
    """Run the program; returns what it has printed last.

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
            said = (said + block.decode("utf-8", "replace"))[-_KEPT:]
            if line := _last_line(said):
                progress(f"Ollama: {line}", None, None)
    return said


def _last_line(said: str) -> str:
    """The last line of what a program has printed, without the codes that move the cursor."""
    plain = _CONTROL.sub("\n", said).replace("\r", "\n")
    lines = [line.strip() for line in plain.split("\n") if line.strip()]
    return one_line(lines[-1], 200).rstrip(".") if lines else ""

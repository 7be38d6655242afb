"""A client of the control socket by the contract, without the code under test."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TypeAlias

from tests.waiting import wait_for

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Message: TypeAlias = dict[str, JSON]

#: Seconds for a worker to get to its first control point: it takes a few, and many where the machine is busy.
PATIENCE = 120.0


def ask(run: Path, *requests: tuple[str, Message]) -> list[list[Message]]:
    """Send commands in one go, and wait for the answers.

    Args:
        run: The run's directory; its worker may have yet to begin.
        *requests: Commands with their arguments, in the order in which they are carried out.

    Returns:
        For each command its messages, the answer last.
    """
    answers: dict[str, list[Message]] = {str(number): [] for number in range(len(requests))}
    lines = [
        json.dumps({"id": str(number), "command": command, "args": args}) + "\n"
        for number, (command, args) in enumerate(requests)
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        wait_for(lambda: _connects(connection, run), PATIENCE, "the worker to listen")
        connection.sendall("".join(lines).encode())
        with connection.makefile("rb") as received:
            while not all(found and "ok" in found[-1] for found in answers.values()):
                message: Message = json.loads(received.readline())
                answers[str(message["id"])].append(message)
    return list(answers.values())


def _connects(connection: socket.socket, run: Path) -> bool:
    """True once the worker listens on the path in its state, which may still change at the start."""
    state: Message = json.loads((run / "state.json").read_text(encoding="utf-8"))
    if not isinstance(path := state["socket"], str):
        return False
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def answer_to(run: Path, command: str, args: Message | None = None) -> Message:
    """The answer to one command."""
    return ask(run, (command, args or {}))[0][-1]


def take_steps(run: Path, wanted: int) -> int:
    """Have a paused run do some steps, one after another; it is paused again afterwards.

    Args:
        run: The run's directory; its worker may have yet to begin.
        wanted: The number of steps that are to be done at least.

    Returns:
        The number of steps done, which is a little more where the worker was faster than the command.
    """
    done = 0
    while done < wanted:
        # Together: a pause that follows by itself could come after the last step.
        _, (paused,) = ask(run, ("resume", {}), ("pause", {}))
        step = paused["step"]
        assert isinstance(step, int)
        done = step
    return done

"""The line protocol of the control socket and of the chat engine: one JSON object per line, both ways.

A request is ``{"id", "command", "args"}``; its answer ``{"id", "ok", …}``, before which a ``generate`` may send any
number of ``{"id", "token"}`` (a worker adds ``source``) and ``{"id", "logprobs"}``. An answer that is not ok carries
``error``, ``hint``, and, if another command helps, ``action``, which the client puts into words for its users.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError

#: Actions that a worker's refusal may name: commands, and a change of one option.
ACTIONS = ("resume", "set", "stop", "lift_quiet_hours")
#: Puts an action into words; called with a name of :data:`ACTIONS` and the run's id.
Ways = Callable[[str, str], str]


class ActionError(UserError):
    """A refusal that an action of the user resolves.

    Args:
        message: As for :class:`~core.errors.UserError`.
        hint: The same; the client appends the command or the key for the action: ``Let it go on first.``
        action: Name in :data:`ACTIONS`.
    """

    def __init__(self, message: str, hint: str, action: str) -> None:
        super().__init__(message, hint)
        self.action = action


def by_command(action: str, run: str) -> str:
    """The command for an action, in quotes."""
    command = f"set {run} night.quiet_hours=none" if action == "lift_quiet_hours" else f"{action} {run}"
    return f"'localtune-tui {command}'"


def with_way(hint: str, way: str) -> str:
    """A hint with the command for its action: ``Let it go on first: 'localtune-tui resume tickets'.``"""
    return f"{hint.rstrip('.')}: {way}."


COMMANDS = ("ping", "pause", "resume", "park", "stop", "checkpoint", "generate", "set", "withdraw", "skip_evaluation")
#: Longest line accepted from a peer.
LINE_LIMIT = 4 << 20
#: Most characters of a request's id and of a command's name.
NAME_LIMIT = 200
#: Deepest nesting of a message, and the greatest integer in it, positive or negative.
DEPTH_LIMIT, INTEGER_LIMIT = 16, 1 << 63


class ProtocolError(ValueError):
    """A line that is not a request or answer."""


class QuestionError(UserError):
    """An invalid question to the model, such as one that is too long.

    Args:
        message: As for :class:`~core.errors.UserError`.
        hint: The same.
        code: Error code for programs.
    """

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


def refusal(error: UserError) -> dict[str, Any]:
    """The fields of a refusal: ``error`` and ``hint``; ``question`` (a code) for an invalid question; ``action`` if an
    action helps."""
    fault = {"question": error.code} if isinstance(error, QuestionError) else {}
    helps = {"action": error.action} if isinstance(error, ActionError) else {}
    return {"error": error.message, "hint": error.hint, **fault, **helps}


def refused(error: str, hint: str, answer: dict[str, Any], run: str = "", ways: Ways = by_command) -> UserError:
    """The error for a refusal from another process.

    Args:
        error: Its message, safe to show.
        hint: Its hint, safe to show.
        answer: The whole answer.
        run: The run that refused.
        ways: Puts an action into words.
    """
    code, action = answer.get("question"), answer.get("action")
    if isinstance(code, str):
        return QuestionError(error, hint, code[:NAME_LIMIT])
    return UserError(error, with_way(hint, ways(action, run)) if action in ACTIONS else hint)


@dataclass(frozen=True)
class Request:
    """Command to carry out."""

    id: str
    command: str
    args: dict[str, Any] = field(default_factory=dict)


def encode_message(message: dict[str, Any]) -> bytes:
    """A message as one line, newline included."""
    return json.dumps(message, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"


def encode_request(request: Request) -> bytes:
    """A request as a line."""
    return encode_message({"id": request.id, "command": request.command, "args": request.args})


def decode_message(line: bytes) -> dict[str, Any]:
    """Decode a line; its numbers are finite, its integers have at most 64 bits, and its nesting is bounded.

    Raises:
        ProtocolError: If it is not such an object.
    """
    try:
        message = json.loads(line, parse_int=_integer, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the line is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("the line is not a JSON object")
    if not _is_shallow(message):
        raise ProtocolError("the line is nested too deep")
    return message


def _integer(text: str) -> int:
    value = int(text)
    if abs(value) > INTEGER_LIMIT:
        raise ValueError("no integer of 64 bits")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("no finite number")
    return value


def _is_shallow(message: dict[str, Any]) -> bool:
    level: list[Any] = [message]
    for _ in range(DEPTH_LIMIT):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not level:
            return True
    return False


def decode_request(line: bytes) -> Request:
    """Decode a line as a request.

    Raises:
        ProtocolError: If it is not a request.
    """
    message = decode_message(line)
    identity, command, args = message.get("id"), message.get("command"), message.get("args", {})
    if type(identity) not in (str, int) or not isinstance(command, str) or not isinstance(args, dict):
        raise ProtocolError("a request needs an id, a command and args that are an object")
    if max(len(str(identity)), len(command)) > NAME_LIMIT:
        raise ProtocolError("its id or its command is too long")
    return Request(str(identity), command, args)


def peer_uid(connection: socket.socket) -> int:
    """User id of the process at the other end of a Unix socket (``SO_PEERCRED``)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return int(uid)

"""Tool calls: arguments and ids in the form that the template at hand reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import string
from collections.abc import Callable
from typing import Any

from core.data.conversation import RowError
from core.template.reasoning import Render

Messages = list[dict[str, Any]]
#: Characters of the ids that Mistral's templates take, which refuse any other length.
_ID_LENGTH = 9
_ID_CHARACTERS = string.digits + string.ascii_letters


def readable_calls(render: Render, messages: Messages) -> Messages:
    """Messages with their tool calls in the form that the template reads: arguments as an object, else as JSON text;
    ids as they are, else of the length that Mistral's templates take.
    """
    forms: list[Callable[[Messages], Messages]] = [
        lambda given: given,
        _with_json_arguments,
        _with_short_ids,
        lambda given: _with_short_ids(_with_json_arguments(given)),
    ]
    try:
        text = render(messages, False)
    except RowError as error:
        for form in forms[1:]:
            with contextlib.suppress(RowError):
                changed = form(messages)
                render(changed, False)
                return changed
        raise error from None
    # A template that outputs an object directly would write Python's repr instead of JSON.
    arguments = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
    if any(isinstance(value, dict) and value and str(value) in text for value in arguments):
        with contextlib.suppress(RowError):
            changed = _with_json_arguments(messages)
            render(changed, False)
            return changed
    return messages


def _with_json_arguments(messages: Messages) -> Messages:
    return [_json_arguments(message) if "tool_calls" in message else message for message in messages]


def _json_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        if not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def _with_short_ids(messages: Messages) -> Messages:
    """Calls, and the answers to them, with other ids: from a call's own, else from what is called where.

    An answer that names no call is of the first that has none yet.
    """
    changed: Messages = []
    ids: dict[str, str] = {}
    open_calls: list[str] = []
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = []
            for number, call in enumerate(message["tool_calls"]):
                given = str(call.get("id") or f"{place} {number} {call['function']['name']}")
                ids[given] = _short(given)
                open_calls.append(ids[given])
                calls.append({**call, "id": ids[given]})
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            answered = ids.get(str(message.get("tool_call_id"))) or next(iter(open_calls), "")
            if answered in open_calls:
                open_calls.remove(answered)
            message = {**message, "tool_call_id": answered}
        changed.append(message)
    return changed


def _short(given: str) -> str:
    """An id of the right length, always the same for the same text; one that has that length stays."""
    if len(given) == _ID_LENGTH and given.isascii() and given.isalnum():
        return given
    value = int.from_bytes(hashlib.sha256(given.encode("utf-8", "replace")).digest()[:8], "big")
    base = len(_ID_CHARACTERS)
    return "".join(_ID_CHARACTERS[value // base**place % base] for place in range(_ID_LENGTH))

"""Tool calls: arguments in the form that the template at hand reads."""

from __future__ import annotations

import json
from typing import Any

from core.data.conversation import RowError
from core.template.reasoning import Render


def readable_calls(render: Render, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the arguments of tool calls in the form that the template reads: an object, else JSON text."""
    as_text = [_with_json_arguments(message) if "tool_calls" in message else message for message in messages]
    try:
        text = render(messages, False)
    except RowError as error:
        try:
            render(as_text, False)
        except RowError:
            raise error from None
        return as_text
    # A template that outputs an object directly would write Python's repr instead of JSON.
    arguments = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
    if any(isinstance(value, dict) and value and str(value) in text for value in arguments):
        try:
            render(as_text, False)
        except RowError:
            return messages
        return as_text
    return messages


def _with_json_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        if not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}

"""Completeness check: a rendered answer must contain everything that its message has."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

from core.data.conversation import RowError
from core.template.reasoning import Thought, is_shown, text_of


def check_complete(message: dict[str, Any], thought: Thought | None, said: str, number: int) -> None:
    """Refuse an answer if the template leaves out a part of it.

    Args:
        message: The assistant's message, as passed to the template.
        thought: Its reasoning.
        said: Its rendered text.
        number: Its number, from 1, for the error.

    Raises:
        RowError: ``template_drops``.
    """
    wrong = ""
    visible = text_of(message) if thought is None else thought.visible
    if visible.strip() not in said:
        wrong = "leaves out or changes the text"
    elif thought is not None and not is_shown(thought, said, message):
        late = bool(message.get("tool_calls")) and thought.bare in said
        wrong = "writes a tool call before the reasoning" if late else "leaves out the reasoning"
    else:
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            if str(function.get("name", "")) not in said:
                wrong = "leaves out a tool call"
            elif any(not _is_in(value, said) for value in _leaves(function.get("arguments"))):
                wrong = "leaves out or changes an argument of a tool call"
    if wrong:
        raise RowError("template_drops", f"The chat template {wrong} of message {number}.")


def _leaves(arguments: Any) -> Iterable[Any]:
    """Scalar values in the arguments of a tool call."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            yield arguments
            return
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            yield key
            yield from _leaves(value) if isinstance(value, (dict, list)) else (value,)
    elif isinstance(arguments, list):
        for value in arguments:
            yield from _leaves(value) if isinstance(value, (dict, list)) else (value,)
    else:
        yield arguments


def _is_in(value: Any, said: str) -> bool:
    """Whether a value is in a text in one of the forms that templates write it in."""
    if not isinstance(value, str):
        return json.dumps(value) in said or str(value) in said
    if value.strip() in said:
        return True
    for text in (value, value.strip()):
        inner = json.dumps(text)[1:-1]
        readable = json.dumps(text, ensure_ascii=False)[1:-1]
        forms = (inner, readable, json.dumps(inner)[1:-1], json.dumps(readable, ensure_ascii=False)[1:-1])
        if any(form in said for form in (*forms, html.escape(text), html.escape(text, quote=False), repr(text)[1:-1])):
            return True
    return False

"""The tool call parser: reads calls out of the text of an answer, in the formats that chat templates teach models."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from core.text import beginning_at_end

#: Texts that calls begin with. The special tokens among them are left out of an answer's text, so some formats begin
#: with the JSON itself.
MARKERS = (
    "<tool_call>",
    "<|tool_call|>",
    "<function=",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "to=functions.",
    "commentary",
)
_OPENINGS = ("{", "[")
_DECODER = json.JSONDecoder()
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>\s*(.*?)\s*(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_HARMONY = re.compile(r"(?:assistant)?(?:commentary)?\s*to=functions\.([\w.-]+?)\s*(?:commentary)?\s*(?:json)?\s*(?={)")
_LIST = re.compile(r"\s*(?:<\|tool_call\|>|\[TOOL_CALLS\]|<\|python_tag\|>)?\s*(?=[\[{])")
_NAMED = re.compile(r"\s*\[TOOL_CALLS\]\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(?={)")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}", compare=False)


def parse_tool_calls(text: str, tools: Collection[str]) -> tuple[str, list[ToolCall]]:
    """An answer as its text and its calls.

    Known are the formats of Qwen and Hermes (``<tool_call>`` around JSON, around ``<function=…>``, or around GLM's keys
    and values), of Llama, Mistral, Granite and Phi (JSON alone, an object or a list, with or without a marker), and of
    gpt-oss. A call counts only if its tool is among those offered, so that an answer that is JSON stays one.

    Args:
        text: The answer, without special tokens.
        tools: Names of the tools that were offered.

    Returns:
        The text without calls and the calls, or the text as it is and none.
    """
    for read in (_tagged, _functions, _harmony, _named, _plain):
        found = read(text)
        if found is not None and found[1] and all(call.name in tools for call in found[1]):
            content, calls = found
            return content.strip(), calls
    return text, []


def tool_call_start(text: str) -> int:
    """Where a call may begin in the beginning of an answer: what is before it is text for sure.

    Args:
        text: The answer so far.

    Returns:
        The place of what may be a call, or the beginning of one; the length of the text where nothing may be.
    """
    stripped = text.lstrip()
    if not stripped or stripped[0] in _OPENINGS:
        return 0
    places = [place for marker in MARKERS if (place := text.find(marker)) >= 0]
    return min(places, default=len(text) - beginning_at_end(text, MARKERS))


_Found = tuple[str, list[ToolCall]]


def _tagged(text: str) -> _Found | None:
    """``<tool_call>`` around JSON, or around GLM's name, keys and values."""
    calls: list[ToolCall] = []
    for match in _TAGGED.finditer(text):
        inner = match[1]
        if inner.startswith("<function="):
            return None
        read = _json_calls(inner) or _keyed_call(inner)
        if read is None:
            return None
        calls += read
    return (_TAGGED.sub("", text), calls) if calls else None


def _keyed_call(text: str) -> list[ToolCall] | None:
    """GLM's form: the name on a line, then pairs of keys and values, tagged or a line each."""
    name, _, rest = text.partition("<arg_key>" if "<arg_key>" in text else "\n")
    pairs = _ARGUMENT.findall(text)
    if not pairs and rest:
        lines = rest.strip("\n").split("\n")
        if len(lines) % 2:
            return None
        pairs = list(zip(lines[::2], lines[1::2], strict=True))
    if not re.fullmatch(r"[\w.-]+", name.strip()):
        return None
    return [ToolCall(name.strip(), {key.strip(): _value(value) for key, value in pairs})]


def _functions(text: str) -> _Found | None:
    """``<function=NAME>`` around ``<parameter=KEY>`` or JSON, in ``<tool_call>`` or not."""
    calls = []
    for match in _FUNCTION.finditer(text):
        pairs = _PARAMETER.findall(match[2])
        arguments = {key: _value(value) for key, value in pairs} if pairs or not match[2] else _object(match[2])
        if arguments is None:
            return None
        calls.append(ToolCall(match[1], arguments))
    return (re.sub(r"</?tool_call>", "", _FUNCTION.sub("", text)), calls) if calls else None


def _harmony(text: str) -> _Found | None:
    """gpt-oss: a message to a function, after what was thought."""
    match = _HARMONY.search(text)
    if match is None or (arguments := _object(text[match.end() :])) is None:
        return None
    return text[: match.start()], [ToolCall(match[1], arguments)]


def _named(text: str) -> _Found | None:
    """Mistral's newer form: a marker, the name, and the arguments, as often as there are calls."""
    calls, place = [], 0
    while (match := _NAMED.match(text, place)) is not None:
        try:
            arguments, place = _DECODER.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            return None
        calls.append(ToolCall(match[1], arguments))
    return ("", calls) if calls and not text[place:].strip() else None


def _plain(text: str) -> _Found | None:
    """JSON alone: an object, several one after another, or a list of them."""
    match = _LIST.match(text)
    calls = _json_calls(text[match.end() :]) if match is not None else None
    return ("", calls) if calls else None


def _json_calls(text: str) -> list[ToolCall] | None:
    """The calls in JSON: an object with a name and arguments, a list of these, or several in a row."""
    calls = []
    for value in _values(text):
        for item in value if isinstance(value, list) else [value]:
            call = _call_of(item)
            if call is None:
                return None
            calls.append(call)
    return calls or None


def _values(text: str) -> Iterator[Any]:
    """The JSON values of a text, between which spaces, commas and semicolons may be; what is none of that is None."""
    place = 0
    while place < len(text):
        if text[place] in " \t\r\n,;":
            place += 1
            continue
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            yield None
            return
        yield value


def _call_of(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    function = value.get("function", value)
    if isinstance(function, str):
        function = {**value, "name": function}
    if not isinstance(function, dict):
        return None
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _object(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _value(text: str) -> Any:
    """A value that is written as JSON, or else a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

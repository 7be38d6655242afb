"""Tool call parser: extracts calls from the text of an answer, in the formats of common chat templates."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from core.text import beginning_at_end

#: Beginnings of calls. Special tokens among them may be missing from an answer, which then begins with JSON.
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
_NAMED = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(?={)")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}", compare=False)


def parse_tool_calls(text: str, tools: Collection[str]) -> tuple[str, list[ToolCall]]:
    """Split an answer into its text and its calls.

    Supported formats: Qwen, Hermes and GLM (``<tool_call>`` around JSON, ``<function=…>``, or keys and values), Llama,
    Mistral, Granite and Phi (a JSON object or list, with or without a marker), and gpt-oss. A call must name an offered
    tool, so other JSON stays text.

    Args:
        text: The answer, without special tokens.
        tools: Names of the offered tools.

    Returns:
        The text without calls, and the calls; or the unchanged text and no calls.
    """
    for read in (_tagged, _functions, _harmony, _named, _plain):
        found = read(text)
        if found is not None and found[1] and all(call.name in tools for call in found[1]):
            content, calls = found
            return content.strip(), calls
    return text, []


def tool_call_start(text: str) -> int:
    """Position in an unfinished answer before which there is certainly only text.

    Args:
        text: The answer so far.

    Returns:
        Position of the first text that may be a call, or the beginning of a marker; else the length of the text.
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
    """GLM's form: the name on a line, then pairs of keys and values, in tags or on lines of their own."""
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
    """``<function=NAME>`` around ``<parameter=KEY>`` or JSON, with or without ``<tool_call>``."""
    calls = []
    for match in _FUNCTION.finditer(text):
        pairs = _PARAMETER.findall(match[2])
        arguments = {key: _value(value) for key, value in pairs} if pairs or not match[2] else _object(match[2])
        if arguments is None:
            return None
        calls.append(ToolCall(match[1], arguments))
    return (re.sub(r"</?tool_call>", "", _FUNCTION.sub("", text)), calls) if calls else None


def _harmony(text: str) -> _Found | None:
    """gpt-oss: a message to a function, after the reasoning."""
    match = _HARMONY.search(text)
    if match is None or (arguments := _object(text[match.end() :])) is None:
        return None
    return text[: match.start()], [ToolCall(match[1], arguments)]


def _named(text: str) -> _Found | None:
    """Mistral's newer form: the name and the arguments of each call, with or without markers."""
    calls, place = [], 0
    while (match := _NAMED.match(text, place)) is not None:
        try:
            arguments, place = _DECODER.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            return None
        calls.append(ToolCall(match[1], arguments))
    return ("", calls) if calls and not text[place:].strip() else None


def _plain(text: str) -> _Found | None:
    """JSON alone: an object, several objects, or a list of objects."""
    match = _LIST.match(text)
    calls = _json_calls(text[match.end() :]) if match is not None else None
    return ("", calls) if calls else None


def _json_calls(text: str) -> list[ToolCall] | None:
    """Calls in JSON: an object with a name and arguments, a list of objects, or several of either."""
    calls = []
    for value in _values(text):
        for item in value if isinstance(value, list) else [value]:
            call = _call_of(item)
            if call is None:
                return None
            calls.append(call)
    return calls or None


def _values(text: str) -> Iterator[Any]:
    """JSON values of a text, separated by spaces, commas or semicolons; invalid JSON yields None and ends it."""
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
    """A value parsed as JSON, or else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

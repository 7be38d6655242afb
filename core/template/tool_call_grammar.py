"""Tool call grammar: holds an answer to calls of tools, in the form in which a chat template writes them.

The form is found by rendering probe calls, and is used if :mod:`core.template.tool_call_parser` reads it back. Other
templates, such as those without tools, get the form of Hermes and Qwen. Grammars are llguidance's, in its Lark syntax.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.data.conversation import RowError
from core.template.tool_call_parser import ToolCall, parse_tool_calls

#: Spaces between the tokens of JSON: at most one, after a comma or a colon, as common templates write it. Free spaces
#: are an invitation to small models, which fill their answer with them.
COMPACT_JSON: Mapping[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allow_general_unicode_escapes": True,
}
#: Member of a JSON Schema whose keywords and formats are left out if llguidance lacks them.
LENIENT: Mapping[str, Any] = {"x-guidance": {"lenient": True}}
#: Most calls in an answer.
CALL_LIMIT = 8
#: Names of the functions that are called in probes, and the arguments.
_NAMES = ("probe_first", "probe_second")
_ARGUMENTS = {"alpha_key": "alpha_value", "beta_key": "beta_value"}
_DECODER = json.JSONDecoder()

#: Renders the assistant's message with calls; returns its text up to the stop token.
WriteCalls = Callable[[Sequence[dict[str, Any]]], str]


@dataclass(frozen=True)
class _Parameters:
    """Texts around a parameter, for templates that write each of them by itself."""

    before: str
    between: str
    after: str
    quoted: bool
    """Texts are JSON, as other values are."""


@dataclass(frozen=True)
class CallForm:
    """Texts around the names of functions and their arguments."""

    before: str
    between: str
    """After the name."""
    after: str
    separator: str | None
    """Between the arguments of a call and the name of the next; None if a turn has one call only."""
    parameters: _Parameters | None = None
    """None for arguments as a JSON object."""


_HERMES = '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"
DEFAULT_FORM = CallForm(*_HERMES, f"{_HERMES[2]}\n{_HERMES[0]}")


def find_form(write: WriteCalls, special: re.Pattern[str]) -> CallForm:
    """The form of a template's calls.

    Args:
        write: Renders a message with calls.
        special: Pattern of the texts of special tokens, which an answer lacks.
    """
    calls = [
        {"type": "function", "id": "0" * 9, "function": {"name": name, "arguments": _ARGUMENTS}} for name in _NAMES
    ]

    def is_read(text: str, count: int) -> bool:
        _, read = parse_tool_calls(special.sub("", text), _NAMES)
        return read == [ToolCall(name, _ARGUMENTS) for name in _NAMES[:count]]

    try:
        text = write(calls[:1])
        form = _form_of(text)
        if form is None or not is_read(text, 1):
            return DEFAULT_FORM
    except RowError:
        return DEFAULT_FORM
    with contextlib.suppress(RowError):
        both, begun = write(calls), text.removesuffix(form.after)
        separator = both.removeprefix(begun).partition(_NAMES[1])[0]
        if both == begun + separator + text[len(form.before) :].replace(*_NAMES) and is_read(both, 2):
            return replace(form, separator=separator)
    return form


def _form_of(text: str) -> CallForm | None:
    before, name, rest = text.partition(_NAMES[0])
    first = rest.find("alpha_key")
    if not name or first < 0:
        return None
    begin = rest.rfind("{", 0, first)
    try:
        value, end = _DECODER.raw_decode(rest, begin)
    except (ValueError, RecursionError):
        value, end = None, 0
    if begin >= 0 and value == _ARGUMENTS:
        return CallForm(before, rest[:begin], rest[end:], None)
    parts = re.split("|".join(leaf for pair in _ARGUMENTS.items() for leaf in pair), rest)
    if len(parts) != 5 or parts[1] != parts[3]:
        return None
    head, between, middle, _, tail = parts
    shared = next(size for size in range(len(middle), -1, -1) if head.endswith(middle[len(middle) - size :]))
    after = middle[: len(middle) - shared]
    if not after or not tail.startswith(after):
        return None
    quoted = between.endswith('"') and after.startswith('"')
    around = _Parameters(middle[len(middle) - shared :], between[: -quoted or None], after[quoted:], quoted)
    return CallForm(before, head[: len(head) - shared], tail[len(after) :], None, around)


def parameters_of(function: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of the arguments of a function: always an object, and lenient unless ``strict`` is set."""
    given = function.get("parameters")
    schema = {**given, "type": "object"} if isinstance(given, Mapping) else {"type": "object"}
    return schema if function.get("strict") is True else {**schema, **LENIENT}


def call_grammar(
    form: CallForm, functions: Sequence[Mapping[str, Any]], special: Mapping[str, int], *, several: bool
) -> str:
    """The grammar of an answer that calls some of the tools.

    Args:
        form: The form of a call.
        functions: The tools, each with ``name``, ``parameters`` and ``strict``.
        special: Special tokens by their texts.
        several: Allow more than one call, if the form has several.
    """
    splits = (
        re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")") if special else None
    )

    def literal(text: str) -> str:
        parts = splits.split(text) if splits is not None else [text]
        return " ".join(f"<[{special[part]}]>" if part in special else _quoted(part) for part in parts if part)

    rules: list[str] = []
    calls = []
    for function in functions:
        schema = parameters_of(function)
        if form.parameters is None:
            arguments = f"{literal(form.between)} {_json(schema)}"
        else:
            arguments = f"{literal(form.between)} {' '.join(_parameters(form.parameters, schema, literal, rules))}"
        calls.append(f"{_quoted(function['name'])} {arguments}")
    further = ""
    if several and form.separator is not None:
        further = f"({literal(form.separator)} call){{0,{CALL_LIMIT - 1}}}"
    start = f"start: {literal(form.before)} call {further} {literal(form.after)}"
    return "\n".join([start, "call: " + "\n | ".join(calls), *rules])


def _parameters(
    form: _Parameters, schema: Mapping[str, Any], literal: Callable[[str], str], rules: list[str]
) -> Iterator[str]:
    """Grammar of each parameter, in order; texts get a rule of their own."""
    required = schema.get("required") or ()
    shared = {name: schema[name] for name in ("$defs", "definitions", "x-guidance") if name in schema}
    for name, value in (schema.get("properties") or {}).items():
        after = literal(form.after)
        if not form.quoted and isinstance(value, Mapping) and value.get("type") == "string":
            if "enum" in value:
                written = f"({' | '.join(map(_quoted, value['enum']))}) {after}"
            else:
                # A text ends where the form ends it, so the end belongs to the pattern.
                written = f"text{len(rules)}"
                rules.append(f"{written}[lazy]: TEXT{len(rules)}\nTEXT{len(rules)}: /(?s:.*)/ {_quoted(form.after)}")
        else:
            written = f"{_json({**value, **shared} if isinstance(value, Mapping) else {})} {after}"
        parameter = f"{literal(form.before + name + form.between)} {written}"
        yield parameter if name in required else f"({parameter})?"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Mapping[str, Any]) -> str:
    given = schema.get("x-guidance")
    options = {**(given if isinstance(given, Mapping) else {}), **COMPACT_JSON}
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"

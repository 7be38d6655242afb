"""Calls of tools read back from the text that templates teach a model to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.data.conversation import Example, Message
from core.template.tool_call_parser import MARKERS, ToolCall, parse_tool_calls, tool_call_start
from tests.cases import cases
from tests.core.template.families import FAMILIES, Family, answer_ids

CASES = yaml.safe_load(Path(__file__).with_name("calls.yaml").read_text(encoding="utf-8"))
TOOLS = ({"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}},)
NAMES = {"add", "look_up"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def written(family: Family, arguments: dict[str, Any]) -> str:
    """Text of a tool call by a model of a family as the server sees it, without special tokens."""
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = (Message("user", "What is 1 + 2?"), Message("assistant", "", tool_calls=(call,)))
    ids = answer_ids(family, [message.fields() for message in Example(messages=messages).messages], TOOLS)
    return str(family.tokenizer().backend.decode(ids, skip_special_tokens=True))


@cases("family", [family for family in FAMILIES if family.tools])
@cases("arguments", [{"a": 1, "b": 2}, {"a": ["x", {"y": None}], "text": 'é "q"\n<end>'}, {}])
def test_what_a_family_writes_is_read_back(family: Family, arguments: dict[str, Any]) -> None:
    text = written(family, arguments)
    content, calls = parse_tool_calls(text, NAMES)
    # A family that reasons writes that it did not.
    assert (content.removeprefix("<think>").removesuffix("</think>").strip(), calls) == (
        "",
        [ToolCall("add", arguments)],
    )
    assert parse_tool_calls(text, {"look_up"}) == (text, []), "a tool that was not offered is no call"
    assert tool_call_start(text) < len(text), "no part of a call is streamed as text"


@cases(("text", "content", "calls"), CASES["read"])
def test_published_formats_are_read(text: str, content: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert parse_tool_calls(text, NAMES) == (content, [ToolCall(*call) for call in calls])


@cases("text", [*CASES["text"], "[" * 100_000, '{"name":' * 50_000])
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse_tool_calls(text, NAMES) == (text, [])


@given(st.text(), st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_any_arguments_are_read_and_any_text_before_them_is_kept(before: str, arguments: dict[str, Any]) -> None:
    call = f"<tool_call>\n{json.dumps({'name': 'add', 'arguments': arguments})}\n</tool_call>"
    if "</tool_call>" in json.dumps(arguments) or "<" in before:
        return
    assert parse_tool_calls(before + call, NAMES) == (before.strip(), [ToolCall("add", arguments)])


@given(st.text(alphabet="<tool_ca>{[|x \n", max_size=20), st.sampled_from(MARKERS))
def test_nothing_of_a_call_is_streamed_wherever_the_text_is_cut(before: str, marker: str) -> None:
    text = before + marker
    for cut in range(len(text)):
        assert tool_call_start(text[:cut]) <= text.index(marker)

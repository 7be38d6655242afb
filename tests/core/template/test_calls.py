"""Tool calls: supervised as a whole, with arguments in the form that the template reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from core.data.conversation import Example, Message
from tests.core.template.families import GLM, GPT_OSS, LLAMA3, QWEN25
from tests.core.template.test_mask import expected_turns, learned_turns, mask, refusal, with_tools


def test_arguments_of_tool_calls_are_given_as_text_to_templates_that_want_text() -> None:
    template = QWEN25.template.replace("call.function.arguments | tojson", "'```' + call.function.arguments + '```'")
    row = mask(dataclasses.replace(QWEN25, marked=template), with_tools())
    assert '```{"a": 1, "b": 2}```' in QWEN25.tokenizer().decode(learned_turns(row)[0][1])


def test_arguments_that_a_template_writes_out_as_they_are_are_json() -> None:
    template = QWEN25.template.replace("{{- call.function.arguments | tojson }}", "{{- call.function.arguments }}")
    assert template != QWEN25.template
    answer = learned_turns(mask(dataclasses.replace(QWEN25, marked=template), with_tools()))[0][1]
    assert '"arguments": {"a": 1, "b": 2}}' in QWEN25.tokenizer().decode(answer)


def test_a_template_that_leaves_out_one_of_two_calls_of_a_tool_is_refused() -> None:
    first, second = ({"function": {"name": "add", "arguments": {"a": value}}} for value in (14, 15))
    example = Example(messages=(Message("user", "add"), Message("assistant", "", tool_calls=(first, second))))
    error = refusal(GPT_OSS, example)
    assert (error.code, "an argument of a tool call" in error.message) == ("template_drops", True)
    assert "14" in QWEN25.tokenizer().decode(learned_turns(mask(QWEN25, example))[0][1])


@pytest.mark.parametrize(
    "value", ['é "q" \\', "a\nb", True, None, 1.5, [1, {"x": ["<&>"]}], {"deep": {"er": "ü"}}, "", " padded "]
)
def test_arguments_of_every_kind_are_found_in_what_templates_write(value: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": value}}}
    example = Example(messages=(Message("user", "add"), Message("assistant", "", tool_calls=(call,))))
    for family in (QWEN25, LLAMA3, GPT_OSS, GLM):
        assert learned_turns(mask(family, example)) == expected_turns(family, example)

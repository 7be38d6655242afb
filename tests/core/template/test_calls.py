"""Tool calls: supervised as a whole, with arguments in the form that the template reads."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from core.data.conversation import Example, Message
from tests.cases import cases
from tests.core.template.families import GLM, GPT_OSS, LLAMA3, QWEN25
from tests.core.template.model_families import MISTRAL_SMALL
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


@cases("value", ['é "q" \\', "a\nb", True, None, 1.5, [1, {"x": ["<&>"]}], {"deep": {"er": "ü"}}, "", " padded "])
def test_arguments_of_every_kind_are_found_in_what_templates_write(value: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": value}}}
    example = Example(messages=(Message("user", "add"), Message("assistant", "", tool_calls=(call,))))
    for family in (QWEN25, LLAMA3, GPT_OSS, GLM):
        assert learned_turns(mask(family, example)) == expected_turns(family, example)


def _asked_twice(ids: tuple[str | None, str | None], named: bool) -> Example:
    turns = [Message("user", "add")]
    for value, given in zip((1, 2), ids, strict=True):
        call: dict[str, Any] = {"type": "function", "function": {"name": "add", "arguments": {"a": value}}}
        turns.append(Message("assistant", "", tool_calls=({**call, "id": given} if given else call,)))
        turns.append(Message("tool", f"got {value}", name="add", tool_call_id=given if named and given else ""))
    return Example(messages=(*turns, Message("assistant", "Done.")))


@cases("ids", [(None, None), ("call_0a1b2c3d4e5f", "call_ffff00001111"), ("toolu_1", None)])
@cases("named", [True, False])
def test_calls_get_ids_of_the_length_that_a_template_takes(ids: tuple[str | None, str | None], named: bool) -> None:
    example = _asked_twice(ids, named)
    text = MISTRAL_SMALL.tokenizer().decode(learned_turns(mask(MISTRAL_SMALL, example))[-1][0])
    called = re.findall(r"\[CALL_ID\](\w{9})\[ARGS\]", text)
    assert len(set(called)) == 2
    assert re.findall(r"\[TOOL_RESULTS\](\w+)\[TOOL_CONTENT\]got \d", text) == called
    # The same every time, so that the rows of a continued run are those of before.
    again = learned_turns(mask(MISTRAL_SMALL, _asked_twice(ids, named)))
    assert again == learned_turns(mask(MISTRAL_SMALL, example))


def test_ids_that_a_template_takes_stay() -> None:
    text = MISTRAL_SMALL.tokenizer().decode(
        learned_turns(mask(MISTRAL_SMALL, _asked_twice(("abcdefghi", "123456789"), True)))[-1][0]
    )
    assert "[CALL_ID]abcdefghi[ARGS]" in text
    assert "[TOOL_RESULTS]123456789[TOOL_CONTENT]got 2" in text


def test_a_template_that_refuses_calls_for_another_reason_says_that() -> None:
    template = MISTRAL_SMALL.template.replace("9 in ids!", "no calls!").replace("!= 9", "!= 10")
    error = refusal(dataclasses.replace(MISTRAL_SMALL, marked=template), with_tools())
    assert error.message == "The chat template refuses the conversation: no calls."

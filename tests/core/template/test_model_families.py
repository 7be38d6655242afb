"""Masks of this year's models: turns, reasoning and calls of tools drawn by chance, with thinking on and off."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data.conversation import Example, Message
from tests.cases import cases
from tests.core.template.families import MODEL_FAMILIES, Family, Thinking
from tests.core.template.test_mask import CONTENT, TOOLS, expected_turns, learned_turns, mask, refusal, with_tools
from tests.examples import examples

CASES = [
    pytest.param(model, thinking, id=f"{model} {thinking or ''}")
    for models in MODEL_FAMILIES.values()
    for model in models
    for thinking in ((None, "on", "off") if model.switch else (None,))
]
_WORDS = st.lists(st.sampled_from(["one", "two", "add", "so", "1", "é", "a b"]), min_size=1, max_size=4).map(" ".join)


@st.composite
def dialogues(draw: st.DrawFn, model: Family, thinking: Thinking) -> Example:
    """A conversation that a model of the family may have: with a system prompt, tools used once or several times in a
    turn, several at once, and reasoning before any answer or call."""
    reasons = bool(model.reasoning) and thinking != "off"
    needed = model.name in NEEDS and thinking != "off"
    uses = model.tools and draw(st.booleans())
    turns = [Message("system", draw(CONTENT))] if draw(st.booleans()) or model.name == "olmo3" else []

    def says(content: str, **more: Any) -> Message:
        reasoning = draw(_WORDS) if reasons and (needed or draw(st.booleans())) else ""
        return Message("assistant", content, reasoning=reasoning, **more)

    number = 0
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Message("user", draw(CONTENT)))
        for _ in range(draw(st.integers(0, 2)) if uses else 0):
            calls = []
            for _ in range(draw(st.integers(1, 1 if model.name in SINGLE else 2))):
                number += 1
                arguments = {"a": draw(st.integers(0, 99)), "b": draw(st.integers(0, 99))}
                function = {"name": "add", "arguments": arguments}
                calls.append({"id": f"call{number:05}", "type": "function", "function": function})
            turns.append(says("", tool_calls=tuple(calls)))
            turns += [Message("tool", draw(_WORDS), name="add", tool_call_id=str(call["id"])) for call in calls]
        turns.append(says(draw(CONTENT)))
    return Example(messages=tuple(turns), tools=TOOLS if uses else ())


#: Templates that write one call, and those whose prompt begins reasoning that nothing but reasoning can go on.
SINGLE = ("llama3", "gpt-oss")
NEEDS = ("olmo3-think", "gemma4-thinking")


def sample(model: Family, thinking: Thinking) -> Example:
    """A conversation with all that a family takes: reasoning before whatever is said, a tool asked twice."""
    reasons = bool(model.reasoning) and thinking != "off"
    turns = [Message("system", "Be brief."), Message("user", "What is 1 + 2, and one more?")]
    for number in (1, 2) if model.tools else ():
        function = {"name": "add", "arguments": {"a": number, "b": 2}}
        call = {"id": f"call{number:05}", "type": "function", "function": function}
        turns.append(Message("assistant", "", reasoning=f"So {number}." if reasons else "", tool_calls=(call,)))
        turns.append(Message("tool", f"{number + 2} it is", name="add", tool_call_id=str(call["id"])))
    turns.append(Message("assistant", "Four.", reasoning="Three and one." if reasons else ""))
    turns += [Message("user", "Thanks."), Message("assistant", "Ask again.", reasoning="Polite." if reasons else "")]
    return Example(messages=tuple(turns), tools=TOOLS if model.tools else ())


@cases(("model", "thinking"), CASES)
@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_learned_is_what_must_be_generated_after_the_prompt(
    model: Family, thinking: Thinking, data: st.DataObject
) -> None:
    example = data.draw(dialogues(model, thinking))
    found = learned_turns(mask(model.told(thinking), example))
    # Where reasoning is left out of earlier turns, a later prompt may be the shorter one.
    assert sorted(found) == sorted(expected_turns(model.told(thinking), example))


def test_a_prompt_that_begins_reasoning_after_an_answer_of_a_tool_asks_for_some() -> None:
    _, model = MODEL_FAMILIES["gemma4"]
    assert refusal(model.told("on"), with_tools()).code == "no_reasoning"
    example = with_tools()
    found = learned_turns(mask(model.told("off"), example))
    assert sorted(found) == sorted(expected_turns(model.told("off"), example))

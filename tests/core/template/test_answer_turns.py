"""Reasoning templates: prompts that open or close a block of reasoning, and markup of the template's own."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings

from core.data.conversation import Example, Message
from core.template.answer_turns import prompt_block
from core.template.mask import Masker
from core.template.tokenizer import MaskedRow
from tests.cases import cases
from tests.core.template import families
from tests.core.template.families import Family, prompt_ids
from tests.core.template.test_mask import (
    TOOLS,
    conversations,
    expected_turns,
    learned_turns,
    mask,
    refusal,
    said,
    shown,
    spans,
    talk,
    with_tools,
)
from tests.examples import examples

SNIPPETS = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))
CASES = yaml.safe_load(Path(__file__).with_name("learned.yaml").read_text(encoding="utf-8"))


def family_of(case: dict[str, Any]) -> Family:
    """The family of a case, with the template changed as it says."""
    family: Family = getattr(families, case["family"])
    for edit in case.get("edits", ()):
        family = family.edited(*edit)
    if "set" in case:
        family = family.setting(*case["set"])
    return dataclasses.replace(family, marked=case.get("template", family.marked) + case.get("append", ""))


def example_of(turns: list[Any]) -> Example:
    messages = []
    for role, turn in zip(itertools.cycle(("user", "assistant")), turns, strict=False):
        content, reasoning, *calls = turn if isinstance(turn, list) else (turn, "")
        functions = tuple({"type": "function", "function": {"name": "add", "arguments": given}} for given in calls)
        messages.append(Message(role, content, reasoning=reasoning, tool_calls=functions))
    has_calls = any(message.tool_calls for message in messages)
    return Example(messages=tuple(messages), tools=TOOLS if has_calls else ())


@cases("case", CASES)
def test_what_is_learned_of_a_conversation(case: dict[str, Any]) -> None:
    family, example = family_of(case), example_of(case["turns"])
    if "refused" in case:
        code, part = case["refused"]
        error = refusal(family, example)
        assert error.code == (code or error.code)
        assert part in error.message
        return
    assert said(family, example) == case["said"]
    for end, text in zip(case.get("shown", ()), shown(family, example), strict=False):
        assert text.endswith(end)


def test_contents_and_reasoning_are_given_as_parts_to_templates_that_read_parts() -> None:
    example = talk("q", "one", "r", "two", reasoning="hm")
    assert said(families.PARTS, example) == ["one</s>", "[THINK]hm[/THINK]two</s>"]
    assert shown(families.PARTS, example)[1] == "<s>[INST]q[/INST]one</s>[INST]r[/INST]"
    assert Masker(families.PARTS.tokenizer()).prompt([{"role": "user", "content": "q"}]) == "<s>[INST]q[/INST]"
    plain = mask(families.PARTS, talk("q", " x ", "r", "y"))
    parts = [{"type": "text", "text": "q"}]
    assert spans(plain)[0][0] == prompt_ids(families.PARTS, [{"role": "user", "content": parts}])
    assert len(plain.rows) == 1


@cases(("prompt", "opening", "closed"), SNIPPETS["blocks"])
def test_blocks_at_the_end_of_a_prompt_are_known(prompt: str, opening: str | None, closed: bool) -> None:
    block = prompt_block(prompt, 0)
    if opening is None:
        assert block is None
        return
    assert block is not None
    assert (block.opening, block.closed) == (opening, closed)
    assert prompt[block.start :].startswith(opening)


def test_the_whole_text_is_learned_with_the_last_answer_as_it_is_generated() -> None:
    example = talk("q", "yes", "r", "\nno")
    row = mask(families.SMOLLM2, example, supervise="all")
    assert isinstance(row, MaskedRow)
    before = prompt_ids(families.SMOLLM2, [message.fields() for message in example.messages[:3]])
    assert list(row.input_ids)[: len(before)] == before
    assert list(row.supervised) == [False] + [True] * (len(row.input_ids) - 1), "nothing predicts a first token"


def with_system(example: Example) -> Example:
    return dataclasses.replace(example, messages=(Message("system", "Be brief."), *example.messages))


@cases(
    "family",
    [
        families.MISCOUNTED,
        families.NO_BUDGET.setting("thinking_budget", "0"),
        families.NO_BUDGET,
        families.UNDIVIDED,
        families.UNSPACED,
    ],
)
@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(example=conversations())
def test_answers_go_on_the_prompts_of_inference(family: Family, example: Example) -> None:
    prompts = [before for before, _ in learned_turns(mask(family, example))]
    messages = [message.fields() for message in example.messages]
    asked = [prompt_ids(family, messages[:place]) for place, one in enumerate(messages) if one["role"] == "assistant"]
    assert prompts == asked
    contents = [message.content for message in example.messages if message.role == "assistant"]
    stop = family.stops[0]
    for answer, content in zip(said(family, example), contents, strict=True):
        assert answer.endswith(content + stop)
        assert answer.removesuffix(content + stop) in ("", "</think>")


def test_a_turn_goes_on_after_the_result_of_a_tool_though_its_prompt_begins_it_anew() -> None:
    answers = ['<|calls|>{"name": "add", "arguments": {"a": 1, "b": 2}}<|called|>', "It is 3.<|done|>"]
    assert said(families.IN_ONE_TURN, with_tools()) == [*answers, "You are welcome.<|done|>"]
    assert shown(families.IN_ONE_TURN, with_tools())[1].endswith("<|called|>[3]<|assistant|>")
    messages = [message.fields() for message in with_tools().messages]
    prompts = [before for before, _ in learned_turns(mask(families.IN_ONE_TURN, with_tools()))]
    assert prompts == [prompt_ids(families.IN_ONE_TURN, messages[:place], with_tools().tools) for place in (1, 3, 5)]


def test_an_answer_follows_a_result_that_has_no_end_of_turn_once_it_is_answered() -> None:
    example = with_system(with_tools())
    assert learned_turns(mask(families.MISCOUNTED, example)) == expected_turns(families.MISCOUNTED, example)
    assert shown(families.MISCOUNTED, example)[1].endswith("<result>3<|im_end|>\n<|im_start|>assistant\n")
    # The finished conversation has it without an end, which is no prompt of inference.
    assert "<result>3<|im_start|>assistant" in shown(families.MISCOUNTED, example)[2]

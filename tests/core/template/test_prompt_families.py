"""Prompts that a finished answer does not begin with: what is learned goes on where the prompt ends."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings

from core.data.conversation import Example, Message
from core.template.stops import stop_token_ids
from tests.cases import cases
from tests.core.template.families import (
    CLOSED_PARTS,
    GPT_OSS,
    IN_ONE_TURN,
    IN_WORDS,
    MISCOUNTED,
    NO_BUDGET,
    SMOLLM2,
    UNDIVIDED,
    UNSPACED,
    Family,
)
from tests.core.template.oracle import prompt_ids
from tests.core.template.test_mask import conversations, expected_turns, learned_turns, mask, refusal, talk, with_tools
from tests.core.template.test_reasoning import said, shown
from tests.examples import examples


def told(family: Family, name: str, value: str) -> Family:
    return dataclasses.replace(family, marked=f"{{%- set {name} = {value} %}}\n{family.marked}")


def with_system(example: Example) -> Example:
    return dataclasses.replace(example, messages=(Message("system", "Be brief."), *example.messages))


@cases(
    "family",
    [MISCOUNTED, told(NO_BUDGET, "thinking_budget", "0"), NO_BUDGET, UNDIVIDED, UNSPACED],
    ids=lambda family: family.name,
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
    assert said(IN_ONE_TURN, with_tools()) == [*answers, "You are welcome.<|done|>"]
    assert shown(IN_ONE_TURN, with_tools())[1].endswith("<|called|>[3]<|assistant|>")
    messages = [message.fields() for message in with_tools().messages]
    prompts = [before for before, _ in learned_turns(mask(IN_ONE_TURN, with_tools()))]
    assert prompts == [prompt_ids(IN_ONE_TURN, messages[:place], with_tools().tools) for place in (1, 3, 5)]


def test_an_answer_follows_a_result_that_has_no_end_of_turn_once_it_is_answered() -> None:
    example = with_system(with_tools())
    assert learned_turns(mask(MISCOUNTED, example)) == expected_turns(MISCOUNTED, example)
    assert shown(MISCOUNTED, example)[1].endswith("<result>3<|im_end|>\n<|im_start|>assistant\n")
    # The finished conversation has it without an end, which is no prompt of inference.
    assert "<result>3<|im_start|>assistant" in shown(MISCOUNTED, example)[2]


def test_an_answer_that_may_not_follow_the_message_is_refused() -> None:
    """Where the template has another text before the answer than the prompt, what follows the prompt is unknown."""
    other = MISCOUNTED.template.replace("'<|im_start|>assistant\\n' }}{%", "'<|im_start|>model\\n' }}{%")
    assert other != MISCOUNTED.template
    error = refusal(dataclasses.replace(MISCOUNTED, marked=other), talk("q", "yes"))
    assert error.code == "template_rewrites"


def test_what_a_template_writes_at_the_end_of_every_conversation_is_never_learned() -> None:
    """A reminder between question and prompt, which moves behind the answer once that is there."""
    template = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + ('<|im_end|>\\n' if message.role == 'user' else '\\n') }}
{%- endfor %}
{{- '<|im_start|>system\\nUse your tools.<|im_end|>\\n' }}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
    family = dataclasses.replace(SMOLLM2, marked=template)
    assert refusal(family, talk("q", "yes")).code == "template_rewrites"


def test_reasoning_follows_the_words_that_a_prompt_begins_it_with() -> None:
    example = talk("q", "yes", reasoning="Hm, so.")
    assert said(IN_WORDS, example) == ["Hm, so.\n[FINAL]\nyes<|end|>"]
    assert shown(IN_WORDS, example)[0].endswith("<|begin_assistant|>\nMy steps:\n")
    # Its beginning may be that of the words.
    assert said(IN_WORDS, talk("q", "yes", reasoning="My hm")) == ["My hm\n[FINAL]\nyes<|end|>"]
    error = refusal(IN_WORDS, talk("q", "yes"))
    assert (error.code, "My steps:" in error.message) == ("no_reasoning", True)


def test_an_answer_follows_a_block_that_the_prompt_closes_with_a_sentence_in_it() -> None:
    family = told(NO_BUDGET, "thinking_budget", "0")
    assert said(family, talk("q", "yes", "r", "no")) == ["yes<seed:eos>", "no<seed:eos>"]
    assert shown(family, talk("q", "yes"))[0].endswith("</seed:budget>\n</seed:think>")
    assert "ends the reasoning" in refusal(family, talk("q", "yes", reasoning="hm")).message


def test_markup_of_a_message_at_the_end_of_a_prompt_is_no_block_of_the_template() -> None:
    bare = "{% for m in messages %}{{ m.content + eos_token if m.role == 'assistant' else m.content }}{% endfor %}"
    family = dataclasses.replace(SMOLLM2, marked=bare)
    assert said(family, talk("<b>bold</b>", "yes", reasoning="hm"))[0].endswith("yes<|im_end|>")
    assert said(family, talk("<b>bold</b>", "yes")) == ["yes<|im_end|>"]


@pytest.mark.parametrize("inline", [False, True])
def test_reasoning_in_a_content_is_written_as_that_in_a_field(inline: bool) -> None:
    content = "<think>\nhm\n</think>\n\nyes"
    example = talk("q", content) if inline else talk("q", "yes", reasoning="hm")
    thinking = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    assert said(GPT_OSS, example) == [f"{thinking}<|channel|>final<|message|>yes<|return|>"]
    assert said(UNDIVIDED, example) == ["<think>hm</think>yes<eos>"]
    assert said(told(UNDIVIDED, "enable_thinking", "true"), example) == ["hm</think>yes<eos>"]


def test_a_block_that_the_template_writes_in_the_same_way_stays_in_its_content() -> None:
    """The spaces are those of the row."""
    keeps = UNDIVIDED.template.replace(" else '</think>'", "")
    family = dataclasses.replace(UNDIVIDED, marked=keeps)
    content = "<think>\nhm\n</think>\n\nyes"
    assert said(family, talk("q", content)) == [f"{content}<eos>"]
    assert said(family, talk("q", "yes", reasoning="hm")) == ["<think>hm</think>yes<eos>"]


def test_reasoning_for_a_content_has_the_spaces_that_the_template_has_around_an_empty_block() -> None:
    thinks = told(UNSPACED, "thinking", "true")
    assert said(thinks, talk("q", "yes", reasoning="hm")) == ["hm</think>yes<eos>"]
    assert said(thinks, talk("q", "yes", "r", "no", reasoning="hm")) == ["</think>yes<eos>", "hm</think>no<eos>"]
    assert said(SMOLLM2, talk("q", "yes", reasoning="hm")) == ["<think>\nhm\n</think>\n\nyes<|im_end|>"]


def test_a_token_that_closes_parts_of_a_turn_does_not_end_it() -> None:
    tokenizer = CLOSED_PARTS.tokenizer()
    stops = [tokenizer.token_text(token) for token in stop_token_ids(tokenizer, tokenizer.own_template())]
    assert stops == ["</s>", "<|end_of_msg|>"]
    assert learned_turns(mask(CLOSED_PARTS, talk("q", "yes", "r", "no"))) == expected_turns(
        CLOSED_PARTS, talk("q", "yes", "r", "no")
    )

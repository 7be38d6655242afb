"""Reasoning templates: prompts that open or close a block of reasoning, and markup of the template's own."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings

from core.data.conversation import Example, Message
from core.template.mask import Masker
from core.template.reasoning import prompt_block
from core.template.row_tokenizer import MaskedRow
from core.template.stops import stop_token_ids
from tests.cases import cases
from tests.core.template.families import (
    CARELESS,
    CLOSED_PARTS,
    COMMAND_R7B,
    DEEPSEEK_R1,
    DEEPSEEK_V31,
    DEEPSEEK_V32,
    GEMMA4,
    GLM47,
    GPT_OSS,
    IN_ONE_TURN,
    IN_WORDS,
    KIMI_THINKING,
    MISCOUNTED,
    NEMOTRON,
    NO_BUDGET,
    NO_THINKING,
    OLMO3_THINK,
    PARTS,
    QWEN25,
    SMOLLM2,
    UNDIVIDED,
    UNSPACED,
    Family,
    prompt_ids,
)
from tests.core.template.test_mask import (
    conversations,
    expected_turns,
    learned_turns,
    mask,
    refusal,
    spans,
    talk,
    with_tools,
)
from tests.examples import examples


def said(family: Family, example: Example) -> list[str]:
    decode = family.tokenizer().decode
    return [decode(answer) for _, answer in learned_turns(mask(family, example))]


def shown(family: Family, example: Example) -> list[str]:
    decode = family.tokenizer().decode
    return [decode(before) for before, _ in learned_turns(mask(family, example))]


@pytest.mark.parametrize("family", [NEMOTRON, GLM47], ids=lambda family: family.name)
def test_reasoning_that_the_prompt_begins_is_learned_in_its_own_turn(family: Family) -> None:
    example = talk("count", "one", "go on", "two", reasoning="I count up.")
    assert learned_turns(mask(family, example)) == expected_turns(family, example)
    assert "I count up." in said(family, example)[1]


def test_an_answer_without_reasoning_ends_the_block_that_its_prompt_begins() -> None:
    assert said(NEMOTRON, talk("q", "yes")) == ["</think>yes<|im_end|>"]
    assert said(GLM47, talk("q", "yes")) == ["</think>yes<|user|>"]


@cases("family", [GEMMA4, DEEPSEEK_V31, DEEPSEEK_V32, COMMAND_R7B, NO_THINKING], ids=lambda family: family.name)
@cases("inline", [False, True])
def test_reasoning_after_a_prompt_that_ends_it_is_refused(family: Family, inline: bool) -> None:
    example = talk("q", "<think>\nhm\n</think>\n\nyes") if inline else talk("q", "yes", reasoning="hm")
    error = refusal(family, example)
    assert error.code == "template_rewrites"
    assert "ends the reasoning" in error.message


def test_a_turn_with_a_call_goes_on_after_the_answer_of_the_tool() -> None:
    example = with_tools()
    assert learned_turns(mask(GEMMA4, example)) == expected_turns(GEMMA4, example)
    assert said(GEMMA4, example) == [
        '<|tool_call>add{"a": 1, "b": 2}<tool_call|><|tool_response>',
        "It is 3.<turn|>",
        "You are welcome.<turn|>",
    ]
    assert shown(GEMMA4, example)[1].endswith("<|tool_response>response:add{3}<tool_response|>")


def test_markup_at_the_edge_of_an_answer_is_no_block_of_reasoning() -> None:
    for content in ("</b>", "<i></i>x", "</think", "[b] [/b]"):
        assert said(GEMMA4, talk("q", content)) == [f"{content}<turn|>"]
        assert said(DEEPSEEK_V32, talk("q", content)) == [f"{content}<｜end▁of▁sentence｜>"]
        assert said(NEMOTRON, talk("q", content)) == [f"</think>{content}<|im_end|>"]


def test_reasoning_fills_the_empty_block_of_a_template_that_knows_it_and_leaves_it_out() -> None:
    example = talk("q", "one", "r", "two", reasoning="hm, so")
    assert said(KIMI_THINKING, example) == ["<think></think>one<|im_end|>", "<think>hm, so</think>two<|im_end|>"]
    first = Message("assistant", "one", reasoning="well")
    turns = (Message("user", "q"), first, *talk("r", "two").messages)
    assert said(KIMI_THINKING, Example(messages=turns))[0] == "<think>well</think>one<|im_end|>"
    assert "well" not in shown(KIMI_THINKING, Example(messages=turns))[1]


def test_reasoning_stands_before_the_end_of_the_block_that_the_prompt_begins() -> None:
    hides = NEMOTRON.edited("message.reasoning_content and", "message.reasoning_content and message.tool_calls and")
    shows_end = hides.edited("{{- '<think>' }}{{ '</think>'", "{{- '<think>\\n\\n' }}{{ '</think>'")
    for family, answer in ((hides, "hm</think>yes"), (shows_end, "hm\n</think>yes")):
        assert said(family, talk("q", "yes", reasoning="hm")) == [f"{answer}<|im_end|>"]


def test_a_template_is_told_to_think_or_not_by_a_line_before_it() -> None:
    switch = NO_THINKING.edited(
        "<think>\\n\\n</think>\\n\\n' }}", "' }}{{ '<think>\\n\\n</think>\\n\\n' if not thinks }}"
    )
    example = talk("q", "<think>\nhm\n</think>\n\nyes")
    assert refusal(switch, example).code == "template_rewrites"
    told = dataclasses.replace(switch, marked="{%- set thinks = true %}\n" + switch.marked)
    assert said(told, example) == ["<think>\nhm\n</think>\n\nyes<|im_end|>"]


def test_a_template_that_writes_reasoning_after_the_call_is_refused() -> None:
    late = QWEN25.edited("{{ message.content }}", "", 1).edited(
        "{{- '<|im_end|>' }}{{ '\\n' }}", "{{- message.content + '<|im_end|>\\n' }}"
    )
    turns = list(with_tools().messages)
    turns[1] = dataclasses.replace(turns[1], reasoning="let me")
    error = refusal(late, dataclasses.replace(with_tools(), messages=tuple(turns)))
    assert (error.code, "before the reasoning" in error.message) == ("template_drops", True)


def test_reasoning_that_the_answer_or_the_call_repeats_is_learned_all_the_same() -> None:
    assert said(SMOLLM2, talk("q", "4 it is", reasoning="4")) == ["<think>\n4\n</think>\n\n4 it is<|im_end|>"]
    assert said(KIMI_THINKING, talk("q", "4 it is", reasoning="4")) == ["<think>4</think>4 it is<|im_end|>"]
    turns = list(with_tools().messages)
    turns[1] = dataclasses.replace(turns[1], reasoning="1")
    answers = said(OLMO3_THINK, dataclasses.replace(with_tools(), messages=(*turns[:2],)))
    assert answers == ["\n1\n</think>\n\n<function_calls>add(a=1, b=2)</function_calls><|endoftext|>"]


def test_a_template_that_leaves_out_reasoning_is_refused_though_the_answer_repeats_it() -> None:
    foreign = dataclasses.replace(SMOLLM2, marked=SMOLLM2.template + "{# [THINK] #}")
    assert refusal(foreign, talk("q", "4 it is", reasoning="4")).code == "template_drops"


def test_a_template_whose_prompt_alone_begins_a_block_gets_it_in_the_content() -> None:
    assert "</think>" not in OLMO3_THINK.template
    example = talk("q", "one", "r", "two", reasoning="hm")
    turns = (*example.messages[:1], Message("assistant", "one", reasoning="so"), *example.messages[2:])
    assert said(OLMO3_THINK, Example(messages=turns)) == [
        "\nso\n</think>\n\none<|endoftext|>",
        "\nhm\n</think>\n\ntwo<|endoftext|>",
    ]
    assert refusal(OLMO3_THINK, example).code == "no_reasoning"


def test_contents_and_reasoning_are_given_as_parts_to_templates_that_read_parts() -> None:
    example = talk("q", "one", "r", "two", reasoning="hm")
    assert said(PARTS, example) == ["one</s>", "[THINK]hm[/THINK]two</s>"]
    assert shown(PARTS, example)[1] == "<s>[INST]q[/INST]one</s>[INST]r[/INST]"
    assert Masker(PARTS.tokenizer()).prompt([{"role": "user", "content": "q"}]) == "<s>[INST]q[/INST]"
    plain = mask(PARTS, talk("q", " x ", "r", "y"))
    parts = [{"type": "text", "text": "q"}]
    assert spans(plain)[0][0] == prompt_ids(PARTS, [{"role": "user", "content": parts}])
    assert len(plain.rows) == 1


def test_a_template_with_markup_of_its_own_gets_no_foreign_block() -> None:
    foreign = dataclasses.replace(SMOLLM2, marked=SMOLLM2.template + "{# [THINK] #}")
    assert refusal(foreign, talk("q", "one", reasoning="hm")).code == "template_drops"
    assert said(SMOLLM2, talk("q", "one", reasoning="hm")) == ["<think>\nhm\n</think>\n\none<|im_end|>"]


def test_reasoning_without_its_opening_is_gone_on_with_where_the_prompt_has_that() -> None:
    assert said(DEEPSEEK_R1, talk("q", "hm\n</think>\n\nyes")) == ["hm\n</think>\n\nyes<｜end▁of▁sentence｜>"]


def test_a_call_after_reasoning_that_the_prompt_begins_is_learned_with_it() -> None:
    family = DEEPSEEK_R1.edited(
        "'<｜Assistant｜>' + content +", "'<｜Assistant｜>' + content + (message.tool_calls | tojson) +"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    answer = said(family, talk("q", "", reasoning="let me", tool_calls=(call,)))[0]
    assert answer.startswith("let me\n</think>\n\n[{")
    assert '"name": "add"' in answer


def test_a_block_of_another_name_that_the_template_leaves_out_is_ended_by_that_name() -> None:
    family = DEEPSEEK_R1.edited("think>", "thought>")
    assert said(family, talk("q", "yes", reasoning="hm")) == ["hm\n</thought>\n\nyes<｜end▁of▁sentence｜>"]
    assert refusal(family, talk("q", "yes")).code == "no_reasoning"
    assert refusal(family, talk("q", "<think>\nhm\n</think>\n\nyes")).code == "template_rewrites"


def test_a_prompt_that_begins_reasoning_in_plain_words_needs_some() -> None:
    opening = "My thoughts:\\n"
    family = SMOLLM2.edited(
        "{{ message['content'] + '<|im_end|>' }}",
        "{{ ('" + opening + "' + message.reasoning_content + '\\nSo: ' if message.reasoning_content else '') "
        "+ message['content'] + '<|im_end|>' }}",
        1,
    ).edited("'<|im_start|>assistant\\n' }}{% endif", "'<|im_start|>assistant\\n" + opening + "' }}{% endif")
    assert said(family, talk("q", "yes", reasoning="hm")) == ["hm\nSo: yes<|im_end|>"]
    error = refusal(family, talk("q", "yes"))
    assert (error.code, "My thoughts:" in error.message) == ("no_reasoning", True)


def test_of_other_spaces_than_the_prompts_those_of_the_content_are_the_answers() -> None:
    assert said(CARELESS, talk("q", "yes", "r", "no")) == ["yes</s>", "no</s>"]
    keeps = CARELESS.edited("content | trim", "content")
    assert said(keeps, talk("q", "\n  yes", "r", " no")) == ["\n  yes</s>", " no</s>"]
    assert said(CARELESS, talk("q", "\n  yes", "r", " no")) == ["yes</s>", "no</s>"]


def test_a_prompt_that_says_something_else_is_refused_with_what_it_says() -> None:
    speaks = SMOLLM2.edited("assistant\\n' }}{% endif", "assistant\\n<|speak|>' }}{% endif")
    error = refusal(speaks, talk("q", "yes"))
    assert error.code == "template_rewrites"
    assert "'<|speak|>'" in error.message
    assert "'yes<|im_end|>" in error.message


@cases(
    ("prompt", "opening", "closed"),
    [
        ("x<think>\n", "<think>", False),
        ("x<think>\n\n</think>\n\n", "<think>", True),
        ("x</think>", "", True),
        ("<|turn>model\n<|channel>thought\n<channel|>", "<|channel>thought", True),
        ("<|START_THINKING|>", "<|START_THINKING|>", False),
        ("<|START_THINKING|><|END_THINKING|>", "<|START_THINKING|>", True),
        ("[/INST][THINK]", "[THINK]", False),
        ("<seed:think></seed:think>", "<seed:think>", True),
    ],
)
def test_blocks_at_the_end_of_a_prompt_are_known(prompt: str, opening: str, closed: bool) -> None:
    block = prompt_block(prompt, 0)
    assert block is not None
    assert (block.opening, block.closed) == (opening, closed)
    assert prompt[block.start :].startswith(opening)


@cases("prompt", ["", "assistant\n", "<|im_start|>assistant\n", "<think> so", "a < b >"])
def test_other_prompts_end_with_no_block(prompt: str) -> None:
    assert prompt_block(prompt, 0) is None


def test_the_whole_text_is_learned_with_the_last_answer_as_it_is_generated() -> None:
    example = talk("q", "yes", "r", "\nno")
    row = mask(SMOLLM2, example, supervise="all")
    assert isinstance(row, MaskedRow)
    before = prompt_ids(SMOLLM2, [message.fields() for message in example.messages[:3]])
    assert list(row.input_ids)[: len(before)] == before
    assert list(row.supervised) == [False] + [True] * (len(row.input_ids) - 1), "nothing predicts a first token"


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
    """The template's text before the answer differs from the prompt, so the continuation is unknown."""
    other = MISCOUNTED.edited("'<|im_start|>assistant\\n' }}{%", "'<|im_start|>model\\n' }}{%")
    error = refusal(other, talk("q", "yes"))
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
    """It keeps the whitespace of the row."""
    family = UNDIVIDED.edited(" else '</think>'", "")
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

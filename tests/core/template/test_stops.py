"""Stop tokens: named in the model's files, or found in the output of its template."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from core.data.conversation import RowError
from core.template.mask import Masker
from core.template.render import ChatTemplate
from core.template.stops import stop_token_ids
from core.template.tokenizer import MaskedRow, ModelTokenizer
from tests.cases import cases
from tests.core.template import families
from tests.core.template.families import Family
from tests.core.template.test_mask import expected_turns, learned_turns, mask, refusal, talk, with_tools


def stops_of(family: Family) -> list[str]:
    tokenizer = family.tokenizer()
    return [tokenizer.token_text(token) for token in stop_token_ids(tokenizer, tokenizer.own_template())]


def ending_text_only(family: Family, eos: str) -> Family:
    """The family's model without the configuration of its generation."""
    return dataclasses.replace(family, stops=(eos,), eos=eos)


SNIPPETS = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))
CASES = [(getattr(families, name), eos, found) for name, eos, found in SNIPPETS["stops"]]


@cases(("family", "eos", "found"), CASES)
def test_what_a_template_ends_answers_with_stops_where_the_files_name_the_end_of_text_only(
    family: Family, eos: str, found: list[str]
) -> None:
    bare = ending_text_only(family, eos)
    assert stops_of(bare) == [eos, *found]
    assert stops_of(family) == list(family.stops), "nothing is added to what a complete model names"
    for example in (talk("a", "b", "c", "d"), *([with_tools()] if family.tools else [])):
        assert learned_turns(mask(bare, example)) == expected_turns(family, example)


def test_a_template_that_ends_answers_with_no_token_is_refused() -> None:
    smollm = families.SMOLLM2
    unknown = dataclasses.replace(smollm, specials=("<|endoftext|>", "<|im_start|>"), stops=("<|endoftext|>",))
    for family in (smollm.edited("<|im_end|>", ""), unknown):
        for supervise in ("assistant", "last", "all"):
            assert refusal(family, talk("a", "b"), supervise=supervise).code == "no_stop_token"


def test_a_token_that_also_stands_between_reasoning_and_answer_does_not_end_answers() -> None:
    family = families.GPT_OSS.edited("<|return|>", "<|end|>")
    assert "<|end|>" not in stops_of(family)
    assert refusal(family, talk("a", "b")).code == "no_stop_token"


def test_a_token_after_each_call_does_not_end_the_turn() -> None:
    calling = dataclasses.replace(families.QWEN25, specials=(*families.QWEN25.specials, "<|called|>"))
    family = calling.edited("\\n</tool_call>", "<|called|>").edited(
        "{{- '<|im_end|>' }}{{ '\\n' }}", "{{- '' if message.tool_calls else '<|im_end|>\\n' }}"
    )
    assert "<|called|>" not in stops_of(family)
    assert refusal(family, with_tools()).code == "no_stop_token"


def test_a_tokenizer_that_names_no_stop_is_refused_unless_the_template_has_one() -> None:
    tokenizer = families.SMOLLM2.tokenizer()
    for template, refused in (
        (families.SMOLLM2.template, False),
        (families.SMOLLM2.template.replace("<|im_end|>", ""), True),
    ):
        bare = ModelTokenizer(tokenizer.backend, special_tokens={}, chat_template=template)
        assert bare.eos_id is None
        row = Masker(bare).mask([talk("a", "b")])[0]
        assert (getattr(row, "code", "") == "no_stop_token") is refused
        if refused:
            assert "name no token" in row.message  # type: ignore[union-attr]


def test_a_template_that_cannot_be_rendered_adds_none() -> None:
    tokenizer = families.SMOLLM2.tokenizer()
    for source in ("{{ raise_exception('no') }}", "{% if %}", "{{ messages[7].content.x }}"):
        assert stop_token_ids(tokenizer, ChatTemplate(source)) == list(tokenizer.stop_ids)


def test_a_turn_that_says_something_and_calls_is_ended_by_the_next_one() -> None:
    example = with_tools()
    turns = list(example.messages)
    turns[1] = dataclasses.replace(turns[1], content="Let me add.")
    spoken = dataclasses.replace(example, messages=tuple(turns))
    assert learned_turns(mask(families.GLM, spoken)) == expected_turns(families.GLM, spoken)


def test_answers_that_nothing_ends_may_be_ended_with_the_end_of_text() -> None:
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = families.SMOLLM2.tokenizer()
    masker = Masker(tokenizer, ChatTemplate(source, tokenizer.special_tokens), end_answers=True)
    (row,) = masker.mask([talk("a", "b", "c", "d")])
    assert isinstance(row, MaskedRow)
    shown = [tokenizer.decode(answer) for _, answer in learned_turns(row)]
    end = tokenizer.token_text(tokenizer.eos_id or 0)
    # Later turns do not see the end, so each answer is learned in a row of its own.
    assert len(row.rows) == 2
    assert shown == [f"b\n{end}", f"d\n{end}"]
    assert masker.ended == 2
    assert not isinstance(Masker(tokenizer, end_answers=True).mask([talk("a", "b")])[0], RowError)
    without_stop = Masker(tokenizer, ChatTemplate(source, tokenizer.special_tokens), end_answers=True, stop_ids=[])
    (refused,) = without_stop.mask([talk("a", "b")])
    assert isinstance(refused, RowError)
    assert refused.code == "no_stop_token"

"""Template tracing: one rendering for all rows of a shape is used only if it equals rendering each row by itself."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.conversation import Example, Message
from core.template.mask import Masker
from core.template.render import ChatTemplate
from core.template.render_cache import InspectedError, TracedTemplate, placeholder
from core.template.row_tokenizer import MaskedRow
from core.template.tokenizer import ModelTokenizer
from tests.cases import cases
from tests.core.template.families import FAMILIES, GEMMA3, MARKED, SMOLLM2, Family
from tests.examples import examples

CASES = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))

#: Contents that templates ask about, or that trimming changes.
_PIECES = ["a", "b c", " ", "\n", "</think>", "<think>", "<tool_response>", "</tool_response>", "{{", "é", "'"]
CONTENT = st.lists(st.sampled_from(_PIECES), max_size=6).map("".join)


@st.composite
def talks(draw: st.DrawFn) -> Example:
    turns = [Message(role, draw(CONTENT)) for _ in range(draw(st.integers(1, 3))) for role in ("user", "assistant")]
    if draw(st.booleans()):
        turns.insert(0, Message("system", draw(CONTENT)))
    return Example(messages=tuple(turns))


@functools.cache
def one_by_one(tokenizer: Any) -> Masker:
    """A masker that renders every conversation by itself."""
    masker = Masker(tokenizer)
    masker._shapes = None
    return masker


@functools.cache
def tokenizer_of(family: Family) -> ModelTokenizer:
    return family.tokenizer()


@cases("family", FAMILIES)
@settings(max_examples=examples(40), deadline=None)
@given(batch=st.lists(talks(), min_size=1, max_size=4))
def test_rows_of_a_shape_are_those_of_each_rendering(family: Family, batch: list[Example]) -> None:
    tokenizer = tokenizer_of(family)
    for fast, slow in zip(Masker(tokenizer).mask(batch), one_by_one(tokenizer).mask(batch), strict=True):
        if isinstance(slow, MaskedRow):
            assert fast == slow
        else:
            assert not isinstance(fast, MaskedRow)
            assert (fast.code, fast.message) == (slow.code, slow.message)


TURNS = (Message("user", "hello"), Message("assistant", "there"))


@cases("family", [family for family in MARKED if "macro" not in family.template])
def test_templates_without_macros_are_rendered_once_for_a_shape(family: Family) -> None:
    masker = Masker(family.tokenizer())
    assert masker._shapes is not None
    # A generation prompt that holds a part of the answer is compared with each answer.
    assert (masker._shapes.rows(TURNS, (1,)) is not None) == (family.name != "no-thinking")


@cases("written", CASES["inspected"])
def test_a_template_that_looks_at_contents_is_never_traced(written: str) -> None:
    source = f"{{% for message in messages %}}{written}{{% endfor %}}"
    ChatTemplate(source).check()
    messages = [{"role": "user", "content": placeholder(0)}, {"role": "assistant", "content": placeholder(1)}]
    with pytest.raises(InspectedError):
        TracedTemplate(ChatTemplate(source)).render(messages, False, set())


@cases(("condition", "ordinary", "other"), CASES["asked"])
def test_questions_about_contents_are_answered_for_each_row(condition: str, ordinary: str, other: str) -> None:
    """The system turn ends in one of two ways, and each row gets the right one."""
    source = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
        f"{{% if message.role == 'user' %}}{{% if {condition} %}}"
        "{{ 'yes ' }}{% else %}{{ 'no ' }}{% endif %}{% endif %}"
        "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    family = dataclasses.replace(SMOLLM2, marked=source)
    tokenizer = family.tokenizer()
    batch = [Example(messages=(Message("user", text), TURNS[1])) for text in (ordinary, other, ordinary)]
    assert Masker(tokenizer).mask(batch) == one_by_one(tokenizer).mask(batch)
    shapes = Masker(tokenizer)._shapes
    assert shapes is not None
    assert shapes.rows(batch[0].messages, (1,)) is not None
    assert shapes.rows(batch[1].messages, (1,)) is None


def test_a_template_that_refuses_a_shape_says_so_in_its_own_words() -> None:
    (row,) = Masker(GEMMA3.tokenizer()).mask([Example(messages=(*TURNS, *TURNS[1:]))])
    assert not isinstance(row, MaskedRow)
    assert "must alternate" in row.message

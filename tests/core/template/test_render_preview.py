"""Render previews of rows: supervised tokens, the generation prompt, and errors of the template."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.conversation import Example, Message
from core.template.builtin import NAMED_TEMPLATES
from core.template.mask import Masker
from core.template.preview import SAMPLE, Preview
from core.template.render_preview import preview_template
from core.template.settings import MaskSettings
from core.template.tokenizer import MaskedRow
from tests.cases import cases
from tests.core.template.families import FAMILIES, GEMMA3, LLAMA3, MISTRAL, SMOLLM2, Family
from tests.examples import examples

SNIPPETS = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))
TOKENIZER = SMOLLM2.tokenizer()


def learned(preview: Preview) -> str:
    return "".join(token.text for row in preview.rows for token in row.tokens if token.learned)


def prompts(preview: Preview) -> str:
    return "".join(token.text for row in preview.rows for token in row.tokens if token.prompt)


@cases("family", FAMILIES)
def test_what_is_learned_is_what_the_masker_learns(family: Family) -> None:
    tokenizer = family.tokenizer()
    preview = preview_template(family.template, SAMPLE, tokenizer)
    masked = Masker(tokenizer).mask([SAMPLE])[0]
    if isinstance(masked, MaskedRow):
        assert not preview.problem
        for row, wanted in zip(preview.rows, masked.rows, strict=True):
            assert [token.learned for token in row.tokens] == [bool(flag) for flag in wanted.supervised]
    else:
        assert preview.problem == masked.message
        assert preview.learned == 0


@cases("family", [SMOLLM2, LLAMA3, GEMMA3])
def test_the_generation_prompt_stands_before_each_answer(family: Family) -> None:
    preview = preview_template(family.template, SAMPLE, family.tokenizer())
    assert preview.generation_prompt
    assert prompts(preview).replace(" ", "") == preview.generation_prompt.replace(" ", "") * 2
    tokens = preview.rows[0].tokens
    for place, token in enumerate(tokens):
        if token.prompt and not tokens[place + 1].prompt:
            assert tokens[place + 1].learned
        assert not (token.prompt and token.learned)


def test_a_template_may_have_no_generation_prompt() -> None:
    preview = preview_template(MISTRAL.template, SAMPLE, MISTRAL.tokenizer())
    assert preview.generation_prompt == ""
    assert prompts(preview) == ""
    assert "Rome." in learned(preview)


def test_options_of_the_configuration_count() -> None:
    last = preview_template(SMOLLM2.template, SAMPLE, TOKENIZER, MaskSettings("", supervise="last", max_length=10))
    assert learned(last) == "Rome.<|im_end|>"
    assert last.rows[0].cut == 10
    assert last.learned == sum(token.learned for token in last.rows[0].tokens) < last.tokens


@cases(("source", "line", "words"), SNIPPETS["wrong"])
@cases("has_tokenizer", [True, False])
def test_what_is_wrong_is_reported_with_its_line(
    source: str, line: int | None, words: str, has_tokenizer: bool
) -> None:
    preview = preview_template(source, SAMPLE, TOKENIZER if has_tokenizer else None)
    if line is None and not has_tokenizer:
        assert not preview.problem, "only the masker refuses it"
        return
    assert words in preview.problem
    assert preview.line == line
    assert preview.learned == 0


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_of_a_pair_both_answers_are_shown(has_tokenizer: bool) -> None:
    asked = (Message("user", "q"),)
    pair = Example(asked, chosen=(Message("assistant", "good"),), rejected=(Message("assistant", "bad"),))
    preview = preview_template(SMOLLM2.template, pair, TOKENIZER if has_tokenizer else None)
    shown = {row.answer: "".join(token.text for token in row.tokens) for row in preview.rows}
    assert list(shown) == ["better", "worse"]
    assert shown["better"].replace("good", "bad") == shown["worse"]
    assert learned(preview) == ("good<|im_end|>bad<|im_end|>" if has_tokenizer else "")


def test_a_refused_row_is_still_shown_as_text() -> None:
    preview = preview_template(NAMED_TEMPLATES["llama3"].source, SAMPLE, TOKENIZER)
    assert preview.problem
    text = "".join(token.text for token in preview.rows[0].tokens)
    assert "<|eot_id|>" in text
    assert "Rome." in text
    assert all(not token.special for token in preview.rows[0].tokens if "eot" in token.text)


def test_without_a_tokenizer_special_tokens_go_by_their_names() -> None:
    preview = preview_template(NAMED_TEMPLATES["mistral"].source, SAMPLE)
    assert not preview.problem
    text = "".join(token.text for token in preview.rows[0].tokens)
    assert text.startswith("<bos_token>[INST] What is the capital")
    assert text.endswith("Rome.<eos_token>")


@settings(max_examples=examples(60))
@given(source=st.text(alphabet="{%}- abm'[]().|+\n\ud800é", max_size=40), words=st.text(min_size=1, max_size=20))
def test_no_template_and_no_row_breaks_it(source: str, words: str) -> None:
    example = Example(messages=(Message("user", "q"), Message("assistant", words.encode("utf-8", "replace").decode())))
    for tokenizer in (TOKENIZER, None):
        preview = preview_template(source, example, tokenizer)
        assert preview.problem or preview.rows

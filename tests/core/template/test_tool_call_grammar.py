"""Grammars of forced calls: what a template teaches a model to write, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from core.data.conversation import Example, Message
from core.template.tool_call_parser import parse_tool_calls
from tests.cases import cases
from tests.core.template.families import FAMILIES, MODEL_FAMILIES, Family
from tests.core.template.test_mask import masker, said
from tests.core.template.toy_tokenizers import id_of

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "unit": {"type": "string", "enum": ["m", "km"]},
        "number": {"$ref": "#/$defs/number"},
    },
    "required": ["text", "number"],
    "$defs": {"number": {"type": "integer"}},
}
TOOLS: tuple[dict[str, Any], ...] = tuple(
    {"type": "function", "function": {"name": name, "description": "It.", "parameters": PARAMETERS}}
    for name in ("look_up", "add", "other")
)
ASK = ({"role": "user", "content": "How far?"},)
ALL = {family.name: family for family in (*FAMILIES, *(each for some in MODEL_FAMILIES.values() for each in some))}
#: Families whose calls the parser reads, with the number of calls in a turn.
FORMS = {"qwen25": 2, "qwen3": 2, "qwen3.5": 2, "granite4": 2, "ministral-3": 2, "glm": 2, "llama3": 1, "gpt-oss": 1}


def taken(family: Family, grammar: str, text: str) -> bool:
    """True if a grammar takes a text whole."""
    backend = family.tokenizer().backend
    tokens = LLTokenizer(backend.to_str(), eos_token=[id_of(backend, stop) for stop in family.stops])
    matcher = LLMatcher(tokens, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = backend.encode(text, add_special_tokens=False).ids
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def written(family: Family, *calls: tuple[str, dict[str, Any]]) -> str:
    """A turn with calls as the template writes it, without the stop token."""
    listed = tuple(
        {"id": "0" * 9, "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in calls
    )
    turns = (Message("user", "How far?"), Message("assistant", "", tool_calls=listed))
    (text,) = said(family, Example(messages=turns, tools=TOOLS))
    places = [place for stop in family.stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]


@cases(("name", "most"), list(FORMS.items()))
def test_a_call_is_written_as_the_template_writes_it(name: str, most: int) -> None:
    family = ALL[name]
    short, long = {"text": "a <b>\n", "number": 3}, {"text": "to", "unit": "km", "number": 12}
    grammar = masker(family).call_grammar(ASK, TOOLS, ("look_up", "add"), several=True)
    assert taken(family, grammar, written(family, ("add", short)))
    assert taken(family, grammar, written(family, ("look_up", long)))
    for wrong in (("other", short), ("add", {"text": "to"}), ("add", {**long, "unit": "mile"})):
        assert not taken(family, grammar, written(family, wrong))
    assert not taken(family, grammar, "Three.")
    if most > 1:
        both = written(family, ("add", short), ("look_up", long))
        assert taken(family, grammar, both)
        assert not taken(family, masker(family).call_grammar(ASK, TOOLS, ("look_up", "add"), several=False), both)


@cases("name", ["smollm2", "mistral-small", "olmo3"])
def test_other_templates_get_the_form_of_hermes(name: str) -> None:
    family = ALL[name]
    call = {"name": "add", "arguments": {"text": "to", "number": 3}}
    text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    assert parse_tool_calls(text, {"add"})[1][0].arguments == call["arguments"]
    assert taken(family, masker(family).call_grammar(ASK, TOOLS, ("add",), several=False), text)


def test_only_a_strict_function_is_held_to_all_its_keywords() -> None:
    function = {"name": "add", "parameters": {"properties": {"a": {"type": "array", "uniqueItems": True}}}}
    for strict in (None, False, True):
        tool = {"type": "function", "function": {**function, "strict": strict}}
        grammar = masker(ALL["qwen25"]).call_grammar(ASK, (tool,), ("add",), several=False)
        assert ("uniqueItems" in LLMatcher.validate_grammar(grammar, None)) == (strict is True)


def test_an_answer_is_continued_where_it_ends() -> None:
    for name, begun, end in (
        ("smollm2", "Six kilo", "assistant\nSix kilo"),
        ("qwen3", "Six kilo", "<think>\n\n</think>\n\nSix kilo"),
        ("llama3", "Six kilo ", "<|end_header_id|>\n\nSix kilo"),
        ("smollm2", "", "<|im_start|>assistant\n"),
    ):
        text = masker(ALL[name]).prompt([*ASK, {"role": "assistant", "content": begun}])
        assert text.endswith(end), name

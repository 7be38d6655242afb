"""Constrained decoding: whatever the model would say, the answer follows the schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from core.chat.request import SCHEMA_LIMIT, QuestionError, grammar_of, reason_of
from core.template.tool_call_grammar import LENIENT
from core.worker.generate.generate import Grammar
from tests.cases import cases

SCHEMAS: list[dict[str, Any]] = [
    {"enum": ["billing", "lögin", None, 3]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 12}, "b": {"$ref": "#/$defs/b"}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "$defs": {"b": {"type": "string", "pattern": "^[xyz]{3}$"}},
    },
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def answer(tokenizer: Any, schema: dict[str, Any], seed: int, extra: int = 0) -> str:
    """The answer of random logits, held to a schema; ``extra`` counts tokens of the model that its tokenizer lacks."""
    stop = tokenizer.eos_token_id
    grammar = Grammar(tokenizer, [stop], grammar_of(json.dumps(schema)))
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    for _ in range(2000):
        logits = grammar.allow(torch.randn(len(tokenizer) + extra, generator=generator))
        token = int(logits.argmax())
        assert token < len(tokenizer)
        if token == stop:
            break
        tokens.append(token)
        grammar.take(token)
        if grammar.is_complete:
            break
    return str(tokenizer.decode(tokens))


@cases("schema", SCHEMAS)
@cases("seed", range(5))
def test_random_logits_follow_a_schema(tokenizer: Any, schema: dict[str, Any], seed: int) -> None:
    said = answer(tokenizer, schema, seed, extra=seed * 37)
    jsonschema.validate(json.loads(said), schema)
    assert re.sub("([,:]) ", r"\1", said) == json.dumps(json.loads(said), separators=(",", ":"), ensure_ascii=False)


@cases(
    ("schema", "reason"),
    [
        ("{", "EOF"),
        ('{"type": "nope"}', "Invalid type"),
        ('{"not": {"type": "string"}}', "Unimplemented keys"),
        ('{"$ref": "#/nope"}', "does not exist"),
        ('{"type": "string", "pattern": "(?=x)"}', "look-around"),
        ('{"$ref": "https://example.org/schema.json"}', ""),
        (" " * (SCHEMA_LIMIT + 1), "KiB"),
        ('{"properties": {"a": ' * 2000, ""),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_in_a_sentence(schema: str, reason: str) -> None:
    with pytest.raises(QuestionError) as refused:
        grammar_of(schema)
    assert reason in refused.value.message
    assert refused.value.message.endswith(".")
    assert "\n" not in refused.value.message


def test_keywords_that_are_not_held_are_named_or_left_out() -> None:
    schema = {"type": "array", "uniqueItems": True, "contains": {"type": "string", "format": "colour"}}
    with pytest.raises(QuestionError) as refused:
        grammar_of(json.dumps(schema))
    assert "Leave contains, uniqueItems out" in refused.value.hint
    with pytest.raises(QuestionError) as refused:
        grammar_of(json.dumps({"type": "string", "format": "colour"}))
    assert "Leave colour out" in refused.value.hint
    assert grammar_of(json.dumps({**schema, **LENIENT}))


@cases("schema", ['{"$ref": "#"}', '{"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}'])
def test_a_schema_without_any_answer_is_refused_without_the_state_of_the_library(tokenizer: Any, schema: str) -> None:
    grammar = Grammar(tokenizer, [tokenizer.eos_token_id], grammar_of(schema))
    with pytest.raises(QuestionError) as refused:
        grammar.allow(torch.zeros(len(tokenizer)))
    assert refused.value.message == "The JSON Schema cannot be followed: NoExtensionBias."


@cases(
    ("problem", "reason"),
    [
        ("Invalid type: no\npe", "Invalid type: no"),
        ("stopped.\u2028<state>\n{}", "stopped"),
        ("regex parse error:\n    (a\n    ^\nerror: unclosed group\n<state>", "regex parse error: unclosed group"),
        ("no detail:\n<state>", "no detail"),
        (" \n ", ""),
        ("a\x1b[2J\tb " + "x" * 400, "a\ufffd[2J b " + "x" * 291 + "…"),
    ],
)
def test_of_a_problem_the_first_line_is_reported(problem: str, reason: str) -> None:
    assert reason_of(problem) == reason


def test_tokens_that_leave_the_schema_are_noticed(tokenizer: Any) -> None:
    grammar = Grammar(tokenizer, [tokenizer.eos_token_id], grammar_of('{"type": "boolean"}'))
    with pytest.raises(QuestionError, match="cannot be followed"):
        grammar.take(tokenizer.encode("ticket", add_special_tokens=False)[0])

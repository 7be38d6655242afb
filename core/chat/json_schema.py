"""JSON Schemas of answers as grammars of llguidance, which masks tokens that do not fit."""

from __future__ import annotations

from core.chat.request import QuestionError
from core.text import one_line

#: Longest schema, in characters.
SCHEMA_LIMIT = 1 << 16


def grammar_of(schema: str) -> str:
    """The grammar of a JSON Schema, for ``llguidance.LLMatcher``.

    Args:
        schema: The schema, as JSON.

    Raises:
        QuestionError: If no answer can be held to it: it is invalid, too large, or uses features that llguidance lacks;
            or llguidance is not installed.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise QuestionError(
            "Answers in a JSON Schema need llguidance, which is not installed.",
            "Install it with the app: pip install 'localtune-tui[serve]'",
        ) from error
    if len(schema) > SCHEMA_LIMIT:
        raise QuestionError(f"The JSON Schema has more than {SCHEMA_LIMIT >> 10} KiB.", "Ask with a smaller one.")
    try:
        grammar = str(
            LLMatcher.grammar_from_json_schema(schema, overrides={"json_allow_general_unicode_escapes": True})
        )
        problem = LLMatcher.validate_grammar(grammar, None)
    except ValueError as error:
        grammar, problem = "", str(error)
    if problem:
        raise QuestionError(f"The JSON Schema cannot be followed: {reason_of(problem)}.", "Ask with another one.")
    return grammar


def reason_of(problem: str) -> str:
    """llguidance's reason, on one line and without a full stop.

    It is the first line; the library's own state follows. If that line is a heading, as for a regular
    expression, the reason is in the line that begins with ``error:``.
    """
    first, *others = problem.strip().splitlines() or [""]
    if first.endswith(":"):
        first += next((line.removeprefix("error:") for line in others if line.startswith("error:")), "")
    return one_line(" ".join(first.split()), 300).rstrip(".:")

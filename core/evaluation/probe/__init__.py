"""The general probe: forty short conversations, written for this program and under its license. Their loss shows how
much a model forgets while it learns something else (catastrophic forgetting; Luo et al., arXiv 2308.08747).

Prose, arithmetic, code, JSON, several languages, facts and instructions, each a question with its answer; the answers
are measured. It shows whether a model has changed in general, and is no benchmark: other items would give other
numbers, and only the difference of two measurements of a model means anything.
"""

from __future__ import annotations

import json
from pathlib import Path

from core.data.conversation import Example, Message

_ITEMS = Path(__file__).with_name("items.jsonl")


def read_probe() -> list[Example]:
    """The conversations of the probe, in their order."""
    with _ITEMS.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Example(tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])) for row in rows]


def as_text(example: Example) -> Example:
    """A conversation as plain text, for a model without a chat template: question and answer, a line each."""
    return Example(text="\n".join(message.content for message in example.messages))

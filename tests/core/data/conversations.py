"""Conversations of examples, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from core.data.conversation import Example

#: Views of an example by name, as plain lists.
VIEWS: dict[str, Callable[[Example], Any]] = {
    "turns": lambda example: [[message.role, message.content] for message in example.messages],
    "train": lambda example: [message.train for message in example.messages],
    "reasoning": lambda example: [message.reasoning for message in example.messages],
    "calls": lambda example: [dict(call) for message in example.messages for call in message.tool_calls],
    "answered": lambda example: [
        [message.name, message.tool_call_id] for message in example.messages if message.role == "tool"
    ],
    "tools": lambda example: [tool["function"]["name"] for tool in example.tools],
    "chosen": lambda example: [message.content for message in example.chosen],
    "rejected": lambda example: [message.content for message in example.rejected],
    "trained answers": lambda example: [side[-1].train for side in (example.chosen, example.rejected)],
    "label": lambda example: example.label,
    "text": lambda example: example.text,
    "segments": lambda example: [[segment.text, segment.train] for segment in example.segments],
    "framed": lambda example: example.is_framed,
    "ids": lambda example: list(example.ids or []),
    "labels": lambda example: list(example.labels or []),
}


def viewed(example: Example, names: Iterable[str]) -> dict[str, Any]:
    """Views of an example."""
    return {name: VIEWS[name](example) for name in names}


def spoken(example: Example) -> list[tuple[str, str]]:
    """The messages of an example, each as its role and its content."""
    return [(message.role, message.content) for message in example.messages]

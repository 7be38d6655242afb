"""Conversations of examples, for tests."""

from __future__ import annotations

from core.data.conversation import Example


def spoken(example: Example) -> list[tuple[str, str]]:
    """The messages of an example, each as its role and its content."""
    return [(message.role, message.content) for message in example.messages]

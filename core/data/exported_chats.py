"""Conversations exported from ChatGPT and Claude, as messages in OpenAI's form.

ChatGPT's export is a tree of messages, of which the branch shown last is read; Claude's is a list. Only text is read:
any other part, and an attached file, becomes a part of its type, for which the row is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Columns with the conversation.
TREE, LIST = "mapping", "chat_messages"
#: Contents of ChatGPT's messages that are no part of the conversation: its thoughts, and settings of the user.
_UNSPOKEN = frozenset(("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context"))
#: Type of a part that stands for attached files.
ATTACHED = "file"


def exported_turns(data: Mapping[str, Any]) -> tuple[str, list[Any]] | None:
    """Column and messages of an exported conversation; None for other rows."""
    nodes, listed = data.get(TREE), data.get(LIST)
    if (
        isinstance(nodes, dict)
        and nodes
        and all({"parent", "message"} <= _object(node).keys() for node in nodes.values())
    ):
        return TREE, _branch(nodes, data.get("current_node"))
    if isinstance(listed, list) and listed and all(isinstance(turn, dict) and "sender" in turn for turn in listed):
        return LIST, [_listed(turn) for turn in listed]
    return None


def _branch(nodes: Mapping[str, Any], leaf: Any) -> list[Any]:
    """Messages from the root of a tree to a leaf; to its last node, if the leaf is not in it."""
    place = leaf if isinstance(leaf, str) and leaf in nodes else next(reversed(list(nodes)))
    turns: list[Any] = []
    for _ in nodes:  # a parent may be its own ancestor
        if (turn := _spoken(nodes[place].get("message"))) is not None:
            turns.append(turn)
        place = nodes[place]["parent"]
        if not isinstance(place, str) or place not in nodes:
            break
    return turns[::-1]


def _spoken(message: Any) -> dict[str, Any] | None:
    """A message of ChatGPT; None if it is hidden, empty or no part of the conversation."""
    if not isinstance(message, dict):
        return None
    author, content, about = (_object(message.get(key)) for key in ("author", "content", "metadata"))
    if about.get("is_visually_hidden_from_conversation") or content.get("content_type") in _UNSPOKEN:
        return None
    given = content.get("parts", [content.get("text")])
    parts = [_part(part) for part in (given if isinstance(given, list) else [given]) if part]
    if not parts and author.get("role") != "user":
        return None
    turn = {"role": author.get("role"), "content": [*parts, *_attached(about.get("attachments"))]}
    called = message.get("recipient") or "all"
    if called == "all" or author.get("role") != "assistant":
        return turn
    text = "".join(str(part.get("text")) for part in parts)
    return turn | {"content": "", "tool_calls": [{"name": called, "arguments": {"input": text}}]}


def _listed(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message of Claude."""
    content = turn.get("content") or turn.get("text")
    parts = content if isinstance(content, list) else [_part(content)]
    files = [*_attached(turn.get("attachments")), *_attached(turn.get("files"))]
    return {"role": turn["sender"], "content": [*parts, *files]}


def _part(part: Any) -> Any:
    """A part of a content in OpenAI's form."""
    return {"type": part.get("content_type")} if isinstance(part, dict) else {"type": "text", "text": part or ""}


def _attached(files: Any) -> list[Any]:
    return [{"type": ATTACHED}] if files else []


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

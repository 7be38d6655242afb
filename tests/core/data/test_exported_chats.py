"""Conversations exported from ChatGPT and Claude."""

from __future__ import annotations

from typing import Any

import pytest

from core.data.conversation import RowError
from core.data.files.rows import Row
from core.data.formats.detect import detect
from tests.cases import cases
from tests.core.data.conversations import viewed


def chatgpt(*nodes: tuple[str, str, dict[str, Any] | None], current: str = "") -> dict[str, Any]:
    """An exported tree; each node is its name, its parent and its message."""
    mapping = {name: {"id": name, "parent": parent or None, "message": message} for name, parent, message in nodes}
    return {"title": "t", "mapping": mapping, "current_node": current or nodes[-1][0]}


def says(role: str, *parts: Any, kind: str = "text", to: str = "all", **about: Any) -> dict[str, Any]:
    content = {"content_type": kind, "parts": list(parts)}
    return {"author": {"role": role}, "content": content, "recipient": to, "metadata": about}


ROOT = ("root", "", None)
ASKS = ("q", "root", says("user", "Name a color."))
PICTURE = {"content_type": "image_asset_pointer", "asset_pointer": "file://a"}


def claude(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"uuid": "1", "name": "n", "chat_messages": list(turns)}


HUMAN = {"sender": "human", "text": "Hi", "content": [{"type": "text", "text": "Hi"}], "attachments": [], "files": []}


def test_the_branch_shown_last_is_read() -> None:
    hidden = says("system", "secret", is_visually_hidden_from_conversation=True)
    row = chatgpt(
        ROOT,
        ("s", "root", hidden),
        ("e", "s", says("system", "")),
        ("q", "e", says("user", "Name a color.")),
        ("first", "q", says("assistant", "Red.")),
        ("thoughts", "q", says("assistant", kind="thoughts")),
        ("second", "thoughts", says("assistant", "Bl", "ue.")),
        ("other", "q", says("assistant", "Green.")),
        current="second",
    )
    found = detect([Row(0, 1, row)])
    assert found.format == "messages"
    want = {"turns": [["user", "Name a color."], ["assistant", "Blue."]]}
    assert viewed(found.example(Row(0, 1, row)), want) == want
    assert found.read_columns(row) == {"mapping"}


def test_a_call_is_a_call() -> None:
    row = chatgpt(
        ROOT,
        ASKS,
        ("call", "q", says("assistant", "print(1)", kind="code", to="python")),
        ("result", "call", says("tool", "1")),
        ("a", "result", says("assistant", "One.")),
    )
    example = detect([Row(0, 1, row)]).example(Row(0, 1, row))
    assert [turn.role for turn in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert example.messages[1].tool_calls[0]["function"] == {"name": "python", "arguments": {"input": "print(1)"}}


def test_messages_of_claude() -> None:
    answers: list[dict[str, object]] = [
        {"sender": "assistant", "text": text, "content": []} for text in ("Hello.", "?")
    ]
    row = claude(HUMAN, answers[0], HUMAN, answers[1])
    want = {"turns": [["user", "Hi"], ["assistant", "Hello."], ["user", "Hi"], ["assistant", "?"]]}
    assert viewed(detect([Row(0, 1, row)]).example(Row(0, 1, row)), want) == want


ANSWERS = ("a", "q", says("assistant", "A cat."))


@cases(
    ("row", "code"),
    [
        (chatgpt(ROOT, ("q", "root", says("user", PICTURE, "What?")), ANSWERS), "has_media"),
        (chatgpt(ROOT, ("q", "root", says("user", "Sum up.", attachments=[{}])), ANSWERS), "has_media"),
        (chatgpt(ROOT, ASKS), "no_answer"),
        (chatgpt(("q", "a", says("user", "loop")), ("a", "q", says("assistant", "loop")), current="q"), "role_order"),
        (claude(HUMAN | {"attachments": [{"file_name": "a"}]}, {"sender": "assistant", "text": "a"}), "has_media"),
        (claude(HUMAN, {"sender": "assistant", "content": [{"type": "tool_use"}]}), "bad_content"),
    ],
)
def test_what_is_no_text_is_refused(row: dict[str, Any], code: str) -> None:
    with pytest.raises(RowError) as caught:
        detect([Row(0, 1, row)]).example(Row(0, 1, row))
    assert caught.value.code == code


@cases("data", [*({"mapping": value} for value in ({"a": 1}, {}, "x")), {"chat_messages": [1]}, {"chat_messages": []}])
def test_other_rows_are_none(data: dict[str, Any]) -> None:
    pair = {"prompt": "q", "completion": "a"}
    assert detect([Row(0, 1, pair | data)]).format == "prompt_completion"

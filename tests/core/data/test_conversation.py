from __future__ import annotations

import pytest

from core.data.conversation import Message, RowError, make_conversation, make_labeled, make_preference, make_text

USER, ANSWER = Message("user", "q"), Message("assistant", "a")
CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}


def test_prompt_and_answer_split_at_the_last_turn() -> None:
    example = make_conversation([USER, ANSWER, Message("user", "c"), Message("assistant", "d")])
    assert [message.content for message in example.prompt] == ["q", "a", "c"]
    assert example.answer == "d"
    assert make_text("plain").answer == ""
    pair = make_preference([USER], [ANSWER], [Message("assistant", "bad")])
    assert (pair.is_preference, pair.prompt, pair.answer) == (True, (USER,), "a")
    labeled = make_labeled([USER, ANSWER], False)
    assert (labeled.label, labeled.is_preference, labeled.answer) == (False, False, "a")


def test_so_long_a_conversation_is_read() -> None:
    assert len(make_conversation([USER, ANSWER] * 500).messages) == 1000
    with pytest.raises(RowError, match="has 1002 messages") as caught:
        make_conversation([USER, ANSWER] * 501)
    assert caught.value.code == "too_long"


def test_a_role_of_any_length_makes_a_short_sentence() -> None:
    with pytest.raises(RowError) as caught:
        make_conversation([Message("\x1b]52;" * 10_000, "a")])
    assert len(caught.value.message) < 200
    assert "\x1b" not in caught.value.message


def test_a_turn_as_templates_expect_it() -> None:
    assert USER.fields() == {"role": "user", "content": "q"}
    full = Message("assistant", "a", reasoning="because", tool_calls=(CALL,))
    assert full.fields() == {"role": "assistant", "content": "a", "reasoning_content": "because", "tool_calls": [CALL]}
    answer = Message("tool", "1", name="look", tool_call_id="c1")
    assert answer.fields() == {"role": "tool", "content": "1", "name": "look", "tool_call_id": "c1"}

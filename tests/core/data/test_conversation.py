from __future__ import annotations

import pytest

from core.data.conversation import (
    Example,
    Message,
    RowError,
    make_conversation,
    make_labeled,
    make_preference,
    make_text,
    make_tokens,
)
from tests.cases import cases


def turns(*pairs: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in pairs]


def test_keeps_the_text_as_it_is() -> None:
    messages = turns(("system", ""), ("user", " hi\n"), ("assistant", "\x1b[31mred [/] "))
    assert make_conversation(messages) == Example(messages=tuple(messages))


def test_prompt_and_answer_split_at_the_last_turn() -> None:
    example = make_conversation(turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert [message.content for message in example.prompt] == ["a", "b", "c"]
    assert example.answer == "d"
    assert make_text("plain").answer == ""


@cases(
    ("messages", "code", "part"),
    [
        ([], "no_messages", "no messages"),
        (turns(("user", "a"), ("critic", "b")), "bad_role", "Message 2 has the role 'critic'"),
        (turns(("user", "a")), "no_answer", "nothing to learn"),
        (turns(("system", "a")), "no_answer", "nothing to learn"),
        (turns(("assistant", "a")), "role_order", "Message 1 is assistant's where user's"),
        (turns(("user", "a"), ("user", "b"), ("assistant", "c")), "role_order", "Message 2 is user's"),
        (
            turns(("system", "s"), ("user", "a"), ("system", "b"), ("assistant", "c")),
            "role_order",
            "Message 3 is system's",
        ),
        (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "no_answer", "last message"),
        (turns(("user", "a"), ("assistant", " \n\t")), "empty_answer", "Message 2"),
        (turns(("user", "a"), ("assistant", ""), ("user", "c"), ("assistant", "d")), "empty_answer", "Message 2"),
        (turns(("user", "a\ud800"), ("assistant", "b")), "bad_content", "ud800"),
        (turns(("user", "a"), ("assistant", "b")) * 501, "too_long", "1002 messages"),
    ],
)
def test_refuses(messages: list[Message], code: str, part: str) -> None:
    with pytest.raises(RowError) as caught:
        make_conversation(messages)
    assert caught.value.code == code
    assert part in caught.value.message


def test_a_long_conversation_is_read() -> None:
    assert len(make_conversation(turns(("user", "a"), ("assistant", "b")) * 500).messages) == 1000


def test_a_role_of_any_length_makes_a_short_sentence() -> None:
    with pytest.raises(RowError) as caught:
        make_conversation([Message("\x1b]52;" * 10_000, "a")])
    assert len(caught.value.message) < 200
    assert "\x1b" not in caught.value.message


def test_text() -> None:
    assert make_text("some text ") == Example(text="some text ")
    for bad, code in ((" \n", "empty_answer"), ("\udfff", "bad_content")):
        with pytest.raises(RowError) as caught:
            make_text(bad)
        assert caught.value.code == code


CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}


def test_calls_of_tools_are_answered_before_the_assistant_goes_on() -> None:
    calling = Message("assistant", "", tool_calls=(CALL,))
    good = [Message("user", "q"), calling, Message("tool", "1"), Message("tool", "2"), Message("assistant", "a")]
    assert make_conversation(good).messages == tuple(good)
    assert make_conversation(good[:2]).answer == ""
    for bad, code in (
        ([good[0], calling, good[0], good[4]], "role_order"),
        ([good[0], good[2], good[4]], "role_order"),
        (good[:3], "no_answer"),
    ):
        with pytest.raises(RowError) as caught:
            make_conversation(bad)
        assert caught.value.code == code


def test_a_turn_as_templates_expect_it() -> None:
    assert Message("user", "q").fields() == {"role": "user", "content": "q"}
    full = Message("assistant", "a", reasoning="because", tool_calls=(CALL,))
    assert full.fields() == {"role": "assistant", "content": "a", "reasoning_content": "because", "tool_calls": [CALL]}
    answer = Message("tool", "1", name="look", tool_call_id="c1")
    assert answer.fields() == {"role": "tool", "content": "1", "name": "look", "tool_call_id": "c1"}


def test_preference_pairs_and_labels() -> None:
    asked, better, worse = [Message("user", "q")], [Message("assistant", "good")], [Message("assistant", "bad")]
    pair = make_preference(asked, better, worse)
    assert (pair.is_preference, pair.prompt, pair.answer) == (True, tuple(asked), "good")
    for chosen, rejected in (([], worse), (better, []), (better, [Message("assistant", " ")])):
        with pytest.raises(RowError):
            make_preference(asked, chosen, rejected)
    labeled = make_labeled([*asked, *worse], False)
    assert (labeled.label, labeled.is_preference, labeled.answer) == (False, False, "bad")


@cases(
    ("ids", "labels", "code"),
    [
        ([], None, "empty_answer"),
        ([1, -1], None, "bad_tokens"),
        ([1, True], None, "bad_tokens"),
        ([1, 2**31], None, "bad_tokens"),
        ([1, 2], [1], "bad_label"),
        ([1, 2], [1, 3], "bad_label"),
        ([1, 2], [1, None], "bad_label"),
    ],
)
def test_tokens_are_checked(ids: list[int], labels: list[int] | None, code: str) -> None:
    with pytest.raises(RowError) as caught:
        make_tokens(ids, labels)
    assert caught.value.code == code


def test_tokens_without_labels_are_all_learned() -> None:
    assert list(make_tokens([5, 6]).labels or []) == [5, 6]
    assert list(make_tokens([5, 6], [-100, 6]).labels or []) == [-100, 6]

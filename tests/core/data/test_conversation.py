from __future__ import annotations

import pytest

from core.data.conversation import Example, Message, RowError, make_conversation, make_text


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


@pytest.mark.parametrize(
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
    ],
)
def test_refuses(messages: list[Message], code: str, part: str) -> None:
    with pytest.raises(RowError) as caught:
        make_conversation(messages)
    assert caught.value.code == code
    assert part in caught.value.message


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

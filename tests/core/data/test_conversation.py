from __future__ import annotations

import pytest

from core.data.conversation import Message, RowError, make_conversation

USER, ANSWER = Message("user", "q"), Message("assistant", "a")


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

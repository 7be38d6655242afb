"""Conversations: each model gets its own answers, and all of it can be written down and read."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from core.chat.dialogue import Dialogue, Exchange, Reply, format_stats, speaker_name

TEXTS = st.text(max_size=8)
REPLIES = st.builds(
    Reply,
    st.sampled_from(["tuned", "base"]),
    TEXTS,
    st.sampled_from(["waiting", "streaming", "done", "stopped", "failed"]),
    *[TEXTS] * 4,
)


@given(st.lists(st.builds(Exchange, TEXTS, st.lists(REPLIES, min_size=1, max_size=2)), max_size=4))
def test_exchanges_are_read_as_they_were_written(exchanges: list[Exchange]) -> None:
    before = Dialogue()
    before.exchanges = exchanges
    data = json.loads(json.dumps(before.to_data()))
    after = Dialogue.from_data(data)
    assert after.to_data() == data
    assert all(not reply.is_open for exchange in after.exchanges for reply in exchange.replies)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4) | st.sampled_from(["tuned", "done"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["question", "replies", "source", "text", "state"]), inner, max_size=5)
        ),
    )
)
def test_data_of_any_shape_is_a_dialogue(data: object) -> None:
    assert Dialogue.from_data(data).to_data() is not None


def test_a_system_prompt_of_blanks_is_none() -> None:
    dialogue = Dialogue()
    dialogue.ask("one", ("base",))
    assert [message["role"] for message in dialogue.messages("base", " \n")] == ["user"]


def test_dialogue_gives_each_source_its_own_answers() -> None:
    dialogue = Dialogue()
    first = dialogue.ask("one", ("tuned", "base"))
    first.replies[0].text, first.replies[1].text = "tuned one", "base one"
    second = dialogue.ask("two", ("tuned",))
    second.replies[0].text = "tuned two"
    dialogue.ask("nobody answered", ("base",))
    dialogue.ask("three", ("base",))
    contents = [message["content"] for message in dialogue.messages("base", "system")]
    assert contents == ["system", "one", "base one", "two", "tuned two", "three"]


def test_speakers_and_stats() -> None:
    assert speaker_name("step-34") == "step 34"
    assert speaker_name("adapter") == "tuned"
    assert format_stats(1, 0.5, 0.0) == "1 token · first 0.50 s"
    assert format_stats(0, 0.0, 0.0) == "0 tokens"
    assert format_stats(256, 0.5, 20.0, "length").endswith("20 tok/s · cut at chat.max_new_tokens")

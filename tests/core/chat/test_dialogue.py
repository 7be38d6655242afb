"""Conversations: each model gets its own answers, and all of it can be written down and read."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.chat.dialogue import Dialogue, Exchange, Reply
from core.chat.session import Answer

KEYS = ["question", "replies", "source", "text", "state", "others", "place", "alone", "wanted"]
TEXTS = st.text(max_size=8)
REPLIES = st.builds(
    Reply,
    st.sampled_from(["tuned", "base", "20261126-101010-run@30"]),
    TEXTS,
    st.sampled_from(["waiting", "streaming", "done", "stopped", "failed"]),
    *[TEXTS] * 4,
    raw=st.just("") | TEXTS,
)


def plant(dialogue: Dialogue, before: Exchange | None, tree: list[tuple[str, list[Reply], list[Any]]]) -> None:
    """Ask each question of a tree after ``before``, each in the place of the one before it."""
    first: Exchange | None = None
    for question, replies, below in tree:
        exchange = dialogue.ask(question, ()) if first is None else dialogue.ask_again(first, question, ())
        exchange.replies, exchange.alone, exchange.wanted = replies, bool(below), question
        first = exchange
        plant(dialogue, exchange, below)


ANSWERS = st.lists(REPLIES, min_size=1, max_size=3)
TREES: st.SearchStrategy[list[Any]] = st.recursive(
    st.lists(st.tuples(TEXTS, ANSWERS, st.just([])), max_size=2),
    lambda below: st.lists(st.tuples(TEXTS, ANSWERS, below), max_size=3),
    max_leaves=8,
)


@given(TREES)
def test_all_branches_are_read_as_they_were_written(tree: list[Any]) -> None:
    before = Dialogue()
    plant(before, None, tree)
    data = json.loads(json.dumps(before.to_data()))
    after = Dialogue.from_data(data)
    assert after.to_data() == data
    assert all(not reply.is_open for exchange in after.exchanges for reply in exchange.replies)
    assert count(after) == count(before)


def count(dialogue: Dialogue) -> int:
    def below(exchange: Exchange) -> int:
        return sum(1 + below(each) for each in exchange.branches)

    return below(dialogue._root)


def answered(dialogue: Dialogue, question: str, answer: str) -> Exchange:
    exchange = dialogue.ask(question, ("tuned",))
    exchange.replies[0].text, exchange.replies[0].state = answer, "done"
    return exchange


def test_a_question_asked_again_keeps_what_was_there() -> None:
    dialogue = Dialogue()
    first = answered(dialogue, "one", "1")
    second = answered(dialogue, "two", "2")
    answered(dialogue, "three", "3")
    again = dialogue.ask_again(second, "two, in other words", ("tuned",))
    again.replies[0].text = "2b"
    assert [each.question for each in dialogue.exchanges] == ["one", "two, in other words"]
    assert dialogue.variants(again) == (1, 2)
    assert dialogue.variants(first) == (0, 1)
    # The model gets the branch that is shown.
    assert [each["content"] for each in dialogue.messages("tuned")] == ["one", "1", "two, in other words"]
    assert [each["content"] for each in dialogue.messages("tuned", until=first)] == ["one"]
    again.alone = True
    assert [each["content"] for each in dialogue.messages("tuned")] == ["two, in other words"]
    assert dialogue.turn(again, 1) is second
    assert [each.question for each in dialogue.exchanges] == ["one", "two", "three"], "what followed it follows again"
    dialogue.remove(second)
    assert [each.question for each in dialogue.exchanges] == ["one", "two, in other words"]


def test_a_model_gets_what_it_wrote_and_not_what_is_shown() -> None:
    dialogue = Dialogue()
    exchange = answered(dialogue, "one", "a\ufffd")
    exchange.replies[0].raw = "a\x1b"
    dialogue.ask("two", ("tuned",))
    assert dialogue.messages("tuned")[1]["content"] == "a\x1b"
    assert Dialogue.from_data(dialogue.to_data()).exchanges[0].replies[0].as_written == "a\x1b"


def test_a_draft_of_endless_branches_is_read() -> None:
    data: list[Any] = []
    for _ in range(5000):
        data = [{"question": "q", "replies": [{"source": "base", "text": "t", "state": "done"}], "others": [data]}]
    assert len(Dialogue.from_data(data).exchanges) == 1


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4) | st.sampled_from(["tuned", "done"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    )
)
def test_data_of_any_shape_is_a_dialogue(data: object) -> None:
    assert Dialogue.from_data(data).to_data() is not None


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
    assert dialogue.messages("base", " \n")[0]["role"] == "user", "a system prompt of blanks is none"


def test_a_reply_takes_an_answer_with_its_figures_and_keeps_the_text_that_it_was_ended_with() -> None:
    answer = Answer("all of it", 4, 0.5, 20.0, "adapter", prompt_tokens=100, context_limit=8192, raw="all of\x07 it")
    whole, ended, blank = Reply("tuned", state="streaming"), Reply("tuned", "all of", "stopped"), Reply("tuned")
    blank.state = "stopped"
    blank.take_answer(Answer("", 0, 0, 0, "adapter"), alone=True)
    assert blank.stats == ""
    for reply in (whole, ended):
        reply.take_answer(answer)
    assert (whole.text, whole.as_written, whole.state) == ("all of it", "all of\x07 it", "done")
    assert (ended.text, ended.raw, ended.state) == ("all of", "", "stopped")
    assert whole.stats == ended.stats == "4 tokens · first 0.50 s · 20 tok/s · context 104 of 8,192"

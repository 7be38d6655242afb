"""The texts of the general probe."""

from __future__ import annotations

import json

from core.evaluation.probe import as_text, read_probe


def test_the_probe_is_short_varied_and_has_an_answer_to_each_question() -> None:
    examples = read_probe()
    assert len(examples) == 40
    assert len({example.messages[0].content for example in examples}) == 40
    for example in examples:
        assert [message.role for message in example.messages] == ["user", "assistant"]
        assert 0 < len(example.answer) <= 250
    assert sum(example.characters for example in examples) < 8_000, "a measurement takes no more than a few seconds"
    assert sum(not example.answer.isascii() for example in examples) >= 5, "several languages"


def test_the_json_answers_are_json() -> None:
    answers = [example.answer for example in read_probe() if example.answer[:1] in "[{"]
    assert len(answers) >= 4
    for answer in answers:
        json.loads(answer)


def test_without_a_template_question_and_answer_are_plain_text() -> None:
    first = read_probe()[0]
    text = as_text(first).text
    assert text == f"{first.messages[0].content}\n{first.answer}"
    assert as_text(first).messages == ()

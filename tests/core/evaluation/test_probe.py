"""The texts of the general probe."""

from __future__ import annotations

import json

from core.evaluation.probe import read_probe


def test_the_probe_is_short_varied_and_has_an_answer_to_each_question() -> None:
    examples = read_probe()
    assert len(examples) == 40
    assert len({example.messages[0].content for example in examples}) == 40
    for example in examples:
        assert [message.role for message in example.messages] == ["user", "assistant"]
        assert 0 < len(example.answer) <= 250
    assert sum(example.characters for example in examples) < 8_000, "a measurement takes no more than a few seconds"
    assert sum(not example.answer.isascii() for example in examples) >= 5, "several languages"
    of_json = [example.answer for example in examples if example.answer[:1] in "[{"]
    assert len(list(map(json.loads, of_json))) >= 4

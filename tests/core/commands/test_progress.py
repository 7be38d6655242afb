"""The line of progress: the words for a step, an evaluation and an end."""

from __future__ import annotations

from typing import Any

from core.commands.progress import phase_words, sample_words, step_words
from core.runs.record.events import EvalEvent, SampleEvent
from core.runs.record.history import RunPhase
from core.runs.record.sentences import evaluation
from core.runs.record.state import StepProgress
from tests.cases import cases, tables

from .conftest import a_step


def test_rewards_are_told_where_there_are_any() -> None:
    plain_step = step_words(a_step(3), 10)
    assert "margin" not in plain_step
    assert "acc" not in plain_step
    compared_step = a_step(3, tokens_per_second=300.0, reward_margin=0.25, reward_accuracy=0.875)
    assert "margin 0.250  acc 0.88  300 tok/s" in step_words(compared_step, 10)
    plain = EvalEvent(step=1, loss=0.5, perplexity=1.6, seconds=1.0, rows=8)
    assert evaluation(plain) == "eval loss 0.500 (8 rows)"
    compared = EvalEvent(
        step=1, loss=0.5, perplexity=None, seconds=1.0, rows=8, reward_margin=0.25, reward_accuracy=0.875
    )
    assert evaluation(compared) == "eval loss 0.500, reward accuracy 0.88, margin 0.250 (8 rows)"


def test_an_answer_is_told_with_what_became_of_it() -> None:
    def words(**marks: Any) -> str:
        return sample_words(SampleEvent(step=3, prompt="Is it?\nReally?", text=" yes ", source="step-3", **marks))

    assert words() == 'step-3 to "Is it?⏎Really?": yes'
    assert words(expected="yes", exact_match=True) == 'step-3 to "Is it?⏎Really?": yes (right)'
    assert words(expected="no", exact_match=False) == 'step-3 to "Is it?⏎Really?": yes (wanted: no)'
    assert words(expected="word " * 40, exact_match=False) == 'step-3 to "Is it?⏎Really?": yes'


@cases(("phase", "progress", "words"), tables(__file__)["phases"])
def test_a_phase_is_told_with_the_part_that_it_is_at_once(phase: list[Any], progress: list[Any], words: str) -> None:
    assert phase_words(RunPhase(*phase), StepProgress(*progress) if progress else None, 12.0) == words

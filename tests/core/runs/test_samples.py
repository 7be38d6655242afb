"""Samples that are kept of a run: those given first, the newest, and no more than there is room for."""

from __future__ import annotations

from core.runs.record.events import SampleEvent
from core.runs.record.history import SAMPLE_CHARACTERS, SAMPLES, Samples


def answer(step: int, text: str = "a", prompt: str = "q") -> SampleEvent:
    return SampleEvent(step=step, prompt=prompt, text=text, source=f"step-{step}")


def steps(samples: Samples) -> list[int]:
    return [event.step for event in samples.kept]


def test_the_first_answers_and_the_newest_stay() -> None:
    samples = Samples()
    for step in range(SAMPLES):
        for prompt in ("one", "two"):
            samples.add(answer(step, prompt=prompt))
    assert len(samples.kept) == SAMPLES
    assert steps(samples)[:3] == [0, 0, SAMPLES - SAMPLES // 2 + 1]
    assert steps(samples)[-1] == SAMPLES - 1


def test_long_answers_take_the_room_of_others() -> None:
    samples = Samples()
    for step in range(4):
        samples.add(answer(step, "a" * (SAMPLE_CHARACTERS // 3 - 1)))
    assert steps(samples) == [0, 2, 3]
    samples.add(answer(4, "a" * SAMPLE_CHARACTERS))
    assert steps(samples) == [0]


def test_answers_of_steps_that_are_done_again_replace_the_former_ones() -> None:
    samples = Samples()
    for step in (0, 5, 10):
        samples.add(answer(step))
    samples.begin_start()
    samples.add(answer(5, "again"))
    samples.add(answer(5, "too"))
    assert [(event.step, event.text) for event in samples.kept] == [(0, "a"), (5, "again"), (5, "too")]
    samples.rewind(5)
    assert steps(samples) == [0]

"""Questions of each evaluation, and the answers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from core.chat.corrections import Correction, keep_correction
from core.config.schema import Config
from core.data.conversation import Example, Message
from core.errors import UserError
from core.evaluation.score import Expected
from core.worker.data.dataset import Dataset
from core.worker.data.encode import Encoder
from core.worker.evaluate import samples
from core.worker.evaluate.samples import Questions, SampleWriter, choose_questions
from core.worker.model.model import load_model


def config(**evaluation: Any) -> Config:
    return Config.model_validate({"data": {"train": "a"}, "eval": evaluation, "chat": {"max_new_tokens": 30}})


@pytest.fixture(scope="module")
def writer_parts(tiny_model_dir: Path) -> Any:
    return load_model(tiny_model_dir, method="lora", precision="fp32", device="cpu")


@pytest.fixture
def held_out(writer_parts: Any) -> Dataset:
    encoder = Encoder(writer_parts.tokenizer, [writer_parts.tokenizer.eos_token_id])
    examples = [
        Example((Message("user", f"question {number}"), Message("assistant", "yes" * (number + 1))))
        for number in range(4)
    ]
    rows = [row for row in encoder.encode(examples) if not isinstance(row, Exception)]
    # An example with further rows is asked once; plain text has no question.
    return Dataset(rows=[rows[0], *rows], examples=[examples[0], *examples])


def test_the_first_held_out_questions_are_asked_with_room_for_their_answers(held_out: Dataset) -> None:
    asked = choose_questions(config(samples=2), held_out)
    assert asked.conversations == [[{"role": "user", "content": f"question {number}"}] for number in (0, 1)]
    assert samples.ANSWER_MARGIN_TOKENS < asked.max_new_tokens < 30
    assert asked.expected == Expected(("yes", "yesyes"))
    assert choose_questions(config(samples=0), held_out).conversations == []
    assert choose_questions(config(), None).conversations == []
    assert choose_questions(config(exact_match=True), held_out).conversations == [], "they are answered anyway"


def test_the_newest_corrected_questions_are_marked_and_go_before_prompts(
    writer_parts: Any, held_out: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.worker.evaluate.samples.PROMPT_LIMIT", 1)
    path = tmp_path / "corrections.jsonl"
    keep_correction(path, Correction(({"role": "user", "content": "older"},), "right", "wrong"))
    keep_correction(path, Correction(({"role": "user", "content": "mine"},), "right", "wrong"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("other")
    sections: dict[str, Any] = {"data": {"train": "a", "corrections": str(path)}, "chat": {"max_new_tokens": 3}}
    asked = choose_questions(Config.model_validate({**sections, "eval": {"prompts": str(prompts)}}), held_out)
    assert [turns[-1]["content"] for turns in asked.conversations] == ["mine", "other"]
    assert asked.expected == Expected(("right", None))
    writer = SampleWriter(writer_parts, asked, contextlib.nullcontext, None, lambda *_: None)
    event, other = writer.write(2, lambda *_: None)
    assert (event.correction, event.expected, event.exact_match, event.step) == (True, "right", False, 2)
    assert (other.correction, other.expected, other.exact_match) == (False, None, None)


def test_prompts_of_a_file_go_first(held_out: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("mine")
    asked = choose_questions(config(prompts=str(path), exact_match=True), held_out)
    assert asked == Questions([[{"role": "user", "content": "mine"}]], 30)
    with pytest.raises(UserError, match="cannot be read"):
        choose_questions(config(prompts=str(tmp_path / "none")), held_out)


def test_answers_name_their_step_and_a_question_that_is_too_long_costs_no_run(writer_parts: Any) -> None:
    complaints: list[tuple[str, str]] = []

    def writer(content: str) -> SampleWriter:
        return SampleWriter(
            writer_parts,
            Questions([[{"role": "user", "content": content}]], 3),
            autocast=contextlib.nullcontext,
            template=None,
            warn=lambda *why: complaints.append(why),
        )

    writer_parts.model.train()
    short = writer("hello")
    events = [event for step in (0, 4) for event in short.write(step, lambda *_: None)]
    assert [(event.step, event.source, event.prompt) for event in events] == [
        (0, "base", "hello"),
        (4, "step-4", "hello"),
    ]
    assert events[0].text == events[1].text
    marks = (events[0].expected, events[0].exact_match, events[0].valid_json)
    assert marks == (None, None, None), "nobody knows the answer"
    assert writer_parts.model.training
    long = writer("word " * 3000)
    assert long.write(1, lambda *_: None) == long.write(2, lambda *_: None) == []
    ((message, hint),) = complaints
    assert message.startswith("There are no samples: The conversation has ")
    assert hint
    assert writer_parts.model.training

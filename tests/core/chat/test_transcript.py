from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chat.transcript import Transcript, Turn
from core.errors import UserError


def conversation() -> Transcript:
    transcript = Transcript(system="Be brief.")
    transcript.ask("Where is Paris?")
    transcript.answer("In France.", "step-12")
    return transcript


def test_messages_begin_with_the_system_prompt_only_if_there_is_one() -> None:
    assert conversation().messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is Paris?"},
        {"role": "assistant", "content": "In France."},
    ]
    assert Transcript(system="  ").messages == []


def test_a_question_without_an_answer_is_replaced_by_the_next_one() -> None:
    transcript = conversation()
    transcript.ask("And Rme?")
    transcript.ask("And Rome?")
    assert [turn.content for turn in transcript.turns] == ["Where is Paris?", "In France.", "And Rome?"]


def test_an_empty_question_is_refused_and_changes_nothing() -> None:
    transcript = conversation()
    with pytest.raises(UserError, match="nothing to ask"):
        transcript.ask(" \n")
    assert len(transcript.turns) == 2


def test_an_answer_needs_a_question() -> None:
    with pytest.raises(ValueError, match="no question"):
        conversation().answer("Again.", "base")


def test_answer_and_question_can_be_taken_back() -> None:
    transcript = conversation()
    assert transcript.drop_answer()
    assert not transcript.drop_answer()
    assert transcript.drop_last() == "Where is Paris?"
    assert transcript.drop_last() == ""
    transcript = conversation()
    assert transcript.drop_last() == "Where is Paris?"
    assert transcript.turns == []


def test_clearing_keeps_the_system_prompt() -> None:
    transcript = conversation()
    transcript.clear()
    assert (transcript.turns, transcript.system) == ([], "Be brief.")


def test_saving_appends_rows_that_a_dataset_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text('{"messages": []}', encoding="utf-8")  # the newline at the end is missing
    conversation().save(path)
    conversation().save(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"messages": []}
    assert rows[1] == rows[2] == {"messages": conversation().messages, "sources": ["step-12"]}


def test_a_new_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    old = os.umask(0o022)
    try:
        conversation().save(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600


def test_saving_says_why_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        Transcript().save(tmp_path / "kept.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        conversation().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_any_text_survives_the_line(pairs: list[tuple[str, str]]) -> None:
    transcript = Transcript(turns=[turn for q, a in pairs for turn in (Turn("user", q), Turn("assistant", a, "base"))])
    line = transcript.to_json()
    assert "\n" not in line
    assert json.loads(line)["messages"] == transcript.messages

"""Corrections: their file, and the configuration that trains on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.chat.corrections import (
    Correction,
    corrections_file,
    keep_correction,
    read_corrections,
    remove_correction,
    train_on_corrections,
    waiting_corrections,
)
from core.config.document import ConfigDocument, dump_config
from core.errors import UserError
from core.runs.record.store import Run, create_run
from tests.cases import cases
from tests.core.runs.helpers import config_for

SYSTEM = {"role": "system", "content": "Answer briefly."}
FIRST = Correction(({"role": "user", "content": "hé\n"},), "right", "wrong")
SECOND = Correction(
    (
        SYSTEM,
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "said before"},
        {"role": "user", "content": "two"},
    ),
    "a",
    "b\ud800",
)


def test_a_correction_of_the_same_question_replaces_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "corrections" / "rows.jsonl"
    for one in (FIRST, SECOND, Correction(FIRST.messages, "better", "wrong")):
        keep_correction(path, one)
    assert read_corrections(path) == [SECOND, Correction(FIRST.messages, "better", "wrong")]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    row = json.loads(path.read_text().splitlines()[1])
    assert row["messages"][-1] == {"role": "assistant", "content": "better"}
    assert remove_correction(path, list(SECOND.messages))
    assert not remove_correction(path, list(SECOND.messages))
    assert [one.answer for one in read_corrections(path)] == ["better"]


def test_a_file_that_was_spoiled_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "no answer"}]}\n')
    with pytest.raises(UserError, match="line 1: It is no conversation that ends with an answer"):
        keep_correction(path, FIRST)
    assert "no answer" in path.read_text()


def test_only_the_corrected_answer_is_learned() -> None:
    (example,) = SECOND.examples("sft")
    assert [(turn.role, turn.train) for turn in example.messages] == [
        ("system", None), ("user", None), ("assistant", False), ("user", None), ("assistant", None),
    ]  # fmt: skip


@cases(
    ("objective", "kept", "rows"),
    [
        ("dpo", False, [("right", "wrong", None)]),
        ("orpo", True, []),
        ("kto", False, [("right", "", True), ("wrong", "", False)]),
        ("kto", True, [("right", "", True)]),
    ],
)
def test_a_preference_objective_gets_pairs_or_labels(
    objective: str, kept: bool, rows: list[tuple[str, str, bool | None]]
) -> None:
    correction = Correction(FIRST.messages, "right", "right" if kept else "wrong")
    found = [
        (one.answer, "".join(turn.content for turn in one.rejected), one.label)
        for one in correction.examples(objective)
    ]
    assert found == rows


@cases("answer", [" ", "a\ud800"])
def test_what_no_model_is_trained_on_is_refused(tmp_path: Path, answer: str) -> None:
    with pytest.raises(UserError, match="This answer cannot be trained on"):
        keep_correction(tmp_path / "rows.jsonl", Correction(FIRST.messages, answer, "b"))
    assert not (tmp_path / "rows.jsonl").exists()


def test_runs_on_the_same_data_share_a_file(private_home: Path) -> None:
    config = config_for(private_home)
    other = config.model_copy(update={"data": config.data.model_copy(update={"train": "/else.jsonl"})})
    runs = [create_run(one, name) for one, name in ((config, "a"), (config, "b"), (other, "a"))]
    first, again, apart = map(corrections_file, runs)
    assert first == again != apart
    assert waiting_corrections(runs[0]) == []
    keep_correction(first, FIRST)
    assert waiting_corrections(runs[1]) == [FIRST]


def test_a_run_goes_on_with_a_copy_and_what_it_has_learned_waits_no_more(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(private_home)
    run = create_run(config, "a")
    with pytest.raises(UserError, match="No correction waits"):
        train_on_corrections(run)
    monkeypatch.setattr("core.chat.corrections.train_further", lambda *_: ConfigDocument(dump_config(config)))
    path = corrections_file(run)
    keep_correction(path, FIRST)
    document = train_on_corrections(run)
    learned = document.validate()
    assert learned.train.max_steps == -(-32 // config.train.batch_size)
    assert not learned.eval.baseline, "no rows are held out"
    assert "epochs" not in document.dumps()
    keep_correction(path, SECOND)
    copy = Path(str(learned.data.corrections))
    assert (copy.parent, read_corrections(copy)) == (path.parent, [FIRST])
    child: Run = create_run(learned, "a")
    assert waiting_corrections(child) == [SECOND]
    assert corrections_file(child) == path


def test_the_steps_suffice_for_both_answers_of_a_correction(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(private_home)
    labeled = config.model_copy(update={"train": config.train.model_copy(update={"objective": "kto"})})
    monkeypatch.setattr("core.chat.corrections.train_further", lambda *_: ConfigDocument(dump_config(labeled)))
    run = create_run(labeled, "a")
    keep_correction(corrections_file(run), FIRST)
    assert train_on_corrections(run).validate().train.max_steps == -(-64 // config.train.batch_size)

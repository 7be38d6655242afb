from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import sample_data
from core.config.document import load_config
from core.data.formats.detect import to_example
from tests.core.data.sample_files import read_rows

AREAS = {"network", "billing", "shipping", "hardware", "account"}
URGENCIES = {"low", "normal", "high"}
# Words that a greeting, an aside or a closing begins with; they would make unlike tickets look alike.
SHINGLE = 3


def tickets(name: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for row in read_rows(sample_data.path(name)):
        assert row.data is not None
        example = to_example(row.data, "messages")
        assert [message.role for message in example.messages] == ["user", "assistant"]
        text = example.messages[0].content
        assert text.startswith("Ticket: ")
        found.append((text.removeprefix("Ticket: "), json.loads(example.answer)))
    return found


TRAIN = tickets("tickets_train.jsonl")
EVAL = tickets("tickets_eval.jsonl")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of three words; numbers do not count."""
    every = words(text)
    return {tuple(every[start : start + SHINGLE]) for start in range(len(every) - SHINGLE + 1)}


def likeness(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / max(min(len(one), len(other)), 1)


def test_there_are_enough_rows_and_none_occurs_twice() -> None:
    assert (len(TRAIN), len(EVAL)) == (400, 80)
    assert len({text for text, _ in TRAIN + EVAL}) == 480


@pytest.mark.parametrize("name", ["tickets_train.jsonl", "tickets_eval.jsonl"])
def test_answers_are_one_compact_object(name: str) -> None:
    for line in sample_data.path(name).read_text(encoding="utf-8").splitlines():
        user, assistant = json.loads(line)["messages"]
        answer = json.loads(assistant["content"])
        assert json.dumps(answer) == assistant["content"]
        assert list(answer) == ["area", "urgency", "ref"]
        assert answer["area"] in AREAS
        assert answer["urgency"] in URGENCIES
        assert answer["ref"] is None or re.search(rf"(?<!\d){answer['ref']}(?!\d)", user["content"])


@pytest.mark.parametrize("rows", [TRAIN, EVAL], ids=["train", "eval"])
def test_labels_are_balanced(rows: list[tuple[str, dict[str, Any]]]) -> None:
    for field, names in (("area", AREAS), ("urgency", URGENCIES)):
        counts = Counter(answer[field] for _, answer in rows)
        assert set(counts) == names
        assert max(counts.values()) <= 1.25 * min(counts.values())
    share = sum(answer["ref"] is not None for _, answer in rows) / len(rows)
    assert 0.35 <= share <= 0.65


def test_no_evaluation_text_is_nearly_one_of_training() -> None:
    training = [shingles(text) for text, _ in TRAIN]
    assert all(shingles(text) for text, _ in EVAL)
    nearest = [max(likeness(shingles(text), other) for other in training) for text, _ in EVAL]
    assert max(nearest) < 0.34


@pytest.mark.parametrize("path", [sample_data.path("tickets.toml"), Path("sample_data/tickets.toml")])
def test_the_configuration_is_valid_and_names_the_sample(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sample_data.path("tickets.toml").parent.parent)
    config = load_config(path)
    assert config.data.train == str(sample_data.path("tickets_train.jsonl"))
    assert config.data.eval == str(sample_data.path("tickets_eval.jsonl"))
    assert config.eval.baseline
    assert config.eval.exact_match
    assert config.eval.max_rows >= len(EVAL)


def test_every_file_is_there() -> None:
    assert all(sample_data.path(name).is_file() for name in sample_data.NAMES)
    assert {path.name for path in Path(sample_data.__file__).parent.glob("tickets*")} <= set(sample_data.NAMES)
    with pytest.raises(FileNotFoundError, match="not part of the sample"):
        sample_data.path("other.jsonl")

"""Data files as tokenized rows, every row accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config.schema import Config
from core.errors import UserError
from core.worker.control import StopRequested
from core.worker.dataset import CHUNK_ROWS, Dataset, load_dataset
from core.worker.template import Encoder


@pytest.fixture(scope="module")
def encoder(tiny_model_dir: Path) -> Encoder:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    return Encoder(tokenizer, [tokenizer.eos_token_id])


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate({"data": {"train": "unused"} | sections.pop("data", {}), **sections})


def chat(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def decode(encoder: Encoder, dataset: Dataset, row: int, *, learned: bool) -> str:
    tokens = dataset.rows[row]
    ids = tokens.input_ids[tokens.supervised] if learned else tokens.input_ids
    return str(encoder.tokenizer.decode(ids))


def test_rows_are_rendered_with_the_answers_marked(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("how", "so"), chat("why", "because"))
    dataset = load_dataset(path, config(), encoder)
    assert decode(encoder, dataset, 1, learned=False) == (
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\nbecause<|im_end|>\n"
    )
    assert decode(encoder, dataset, 1, learned=True) == "because<|im_end|>"
    assert [example.answer for example in dataset.examples] == ["so", "because"]
    event = dataset.event()
    assert (event.rows, event.used, event.dropped) == (2, 2, {})
    assert event.tokens == sum(dataset.lengths)
    assert event.longest == max(dataset.lengths)
    assert event.supervised_tokens == sum(int(row.supervised.sum()) for row in dataset.rows)


def test_files_of_different_formats_are_read_one_after_another(encoder: Encoder, tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", chat("one")),
        write(tmp_path / "b.jsonl", {"prompt": "two", "completion": "deux"}),
        write(tmp_path / "c.jsonl", {"text": "plain words"}),
    ]
    dataset = load_dataset(paths, config(), encoder)
    assert [example.answer for example in dataset.examples] == ["yes", "deux", ""]
    assert decode(encoder, dataset, 2, learned=False) == "plain words<|im_end|>"
    assert [text.split(":")[0] for text in dataset.formats.values()] == ["messages", "prompt_completion", "text"]


def test_what_cannot_be_used_is_counted_and_the_first_of_each_kind_named(encoder: Encoder, tmp_path: Path) -> None:
    rows = [chat("fine"), "{not json", chat("long " * 100), {"messages": []}, "[1]", chat("x", " "), chat("last")]
    dataset = load_dataset(write(tmp_path / "mixed.jsonl", *rows), config(train={"max_length": 100}), encoder)
    event = dataset.event()
    assert event.used == 2
    assert event.rows == 7 == event.used + sum(event.dropped.values())
    assert event.dropped == {
        "not_json": 1, "overlong": 1, "no_messages": 1, "not_an_object": 1, "empty_answer": 1,
    }  # fmt: skip
    assert dataset.first_dropped["not_json"].startswith("mixed.jsonl, line 2: ")
    assert dataset.first_dropped["overlong"].startswith("mixed.jsonl, line 3: ")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(["good", "long", "broken", "empty"]), max_size=30),
    limit=st.none() | st.integers(1, 10),
)
def test_no_row_is_lost_and_none_counted_twice(
    encoder: Encoder, tmp_path: Path, kinds: list[str], limit: int | None
) -> None:
    made = {"good": chat("a"), "long": chat("b " * 100), "broken": "{", "empty": {"messages": []}}
    path = write(tmp_path / "rows.jsonl", chat("first"), *(made[kind] for kind in kinds))
    dataset = load_dataset(path, config(train={"max_length": 100}), encoder, limit=limit)
    good = 1 + kinds.count("good")
    event = dataset.event()
    assert event.used == len(dataset.examples) == (good if limit is None else min(good, limit))
    assert event.rows == event.used + sum(event.dropped.values())
    if limit is None:
        assert event.rows == 1 + len(kinds)


def test_long_rows_are_cut_where_that_is_asked_for(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("short"), chat("x", "y" * 200), chat("z" * 200, "never reached"))
    dataset = load_dataset(path, config(train={"max_length": 60}, data={"overlong": "truncate"}), encoder)
    assert dataset.lengths[1] == 60
    assert decode(encoder, dataset, 1, learned=True).startswith("yyy")
    assert dataset.dropped == {"nothing_supervised": 1}


def test_long_rows_are_refused_where_that_is_asked_for(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("short"), "", chat("z" * 200))
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: The row has \d+ tokens") as caught:
        load_dataset(path, config(train={"max_length": 60}, data={"overlong": "refuse"}), encoder)
    assert "train.max_length" in caught.value.hint


def test_nothing_to_use_is_an_error_that_says_why(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("z" * 200), chat("z" * 300))
    with pytest.raises(UserError, match=r"No row of .*a\.jsonl can be used \(2 x overlong\)\. a\.jsonl, line 1: "):
        load_dataset(path, config(train={"max_length": 60}), encoder)


def test_a_template_that_spoils_every_row_is_what_the_hint_is_about(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chat("x"))
    broken = Encoder(encoder.tokenizer, [encoder.tokenizer.eos_token_id], "{% for message in %}")
    with pytest.raises(UserError, match=r"\(1 x template_error\)\. a\.jsonl, line 1: .*\.$") as caught:
        load_dataset(path, config(), broken)
    assert caught.value.hint.endswith("template.file.")


def test_a_limit_ends_the_reading(encoder: Encoder, tmp_path: Path) -> None:
    told: list[int] = []
    first = write(tmp_path / "a.jsonl", *(chat(f"question {number}") for number in range(3 * CHUNK_ROWS)))
    second = str(tmp_path / "never-opened.jsonl")
    dataset = load_dataset([first, second], config(), encoder, limit=5, progress=told.append)
    assert [example.messages[0].content for example in dataset.examples] == [f"question {n}" for n in range(5)]
    assert dataset.event().rows == 5
    assert told == [5]


def test_progress_is_told_and_can_end_it(encoder: Encoder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(chat(f"question {number}") for number in range(2 * CHUNK_ROWS + 1)))
    told: list[int] = []
    dataset = load_dataset(path, config(), encoder, progress=told.append)
    assert told == [CHUNK_ROWS, 2 * CHUNK_ROWS, 2 * CHUNK_ROWS + 1]
    assert all(row.input_ids.dtype == np.int32 for row in dataset.rows)

    def stop(_: int) -> None:
        raise StopRequested("SIGTERM")

    with pytest.raises(StopRequested):
        load_dataset(path, config(), encoder, progress=stop)

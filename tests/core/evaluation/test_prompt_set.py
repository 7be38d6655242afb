"""Prompt sets as files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.data.registries.resolve import hash_data_files
from core.errors import UserError
from core.evaluation import prompt_set
from core.evaluation.evaluation import EvaluationRequest
from core.evaluation.prompt_set import PromptItem, read_prompt_set
from core.runs.record.chain import Chain
from core.runs.record.store import create_run
from core.template.settings import mask_settings
from core.worker.data.dataset import Loader
from core.worker.data.encode import Encoder
from tests.cases import cases
from tests.core.chat.test_session import add_adapter


def write(directory: Path, name: str, *rows: Any) -> str:
    path = directory / name
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def test_lines_of_our_own(tmp_path: Path) -> None:
    schema = {"type": "object"}
    path = write(
        tmp_path, "p.jsonl",
        {"prompt": "one", "expected": "1", "id": "first"},
        "",
        {"messages": [{"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}]},
        {"prompt": "three", "expected": {"a": [1, None]}, "schema": schema},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "four\u2028x"}], "expected": "4"},
        {"prompt": "again", "id": "first"},
    )  # fmt: skip
    found = read_prompt_set(path, system="Be short.")
    assert [item.id for item in found.items] == ["first", "2", "3", "4", "first (2)"]
    assert [item.expected for item in found.items] == ["1", "2", '{"a": [1, null]}', "4", None]
    assert [len(item.messages) for item in found.items] == [2, 1, 2, 2, 2]
    assert found.items[0].messages[0] == {"role": "system", "content": "Be short."}
    assert found.items[1].messages == ({"role": "user", "content": "two"},), "the answer is what is expected"
    assert found.items[2].schema == schema
    assert found.items[3].question == "four\u2028x"
    assert PromptItem.from_dict(asdict(found.items[2])) == found.items[2]


def test_lines_of_text_and_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "\ufeffone", "", "  two  ", "three")
    assert [item.question for item in read_prompt_set(path).items] == ["one", "two", "three"]
    assert [item.question for item in read_prompt_set(path, limit=2).items] == ["one", "two"]


def test_a_dataset_is_asked_for_its_last_answers(tmp_path: Path) -> None:
    path = write(
        tmp_path, "d.jsonl",
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hello.", "input": "", "output": "hello"},
        {"instruction": "", "input": "", "output": "nothing asked"},
    )  # fmt: skip
    found = read_prompt_set(path)
    assert found.items[0].question == "Add.\n1 and 2"
    assert [item.expected for item in found.items][:2] == ["3", "hello"]
    pairs = write(tmp_path, "e.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"})
    assert [(item.question, item.expected) for item in read_prompt_set(pairs).items] == [("a", "b"), ("c", "d")]


def test_rows_that_are_no_questions_are_counted(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tool = [*turns, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path, "d.jsonl", {"messages": turns, "source": "x"}, {"messages": tool, "source": "x"})
    found = read_prompt_set(path)
    assert (len(found.items), found.skipped) == (1, 1)


@cases(
    ("rows", "said"),
    [
        ([{"prompt": "a"}, "{"], "line 2: It is not JSON."),
        ([{"prompt": "a"}, "[1]"], "line 2: It is no JSON object."),
        ([{"prompt": "a"}, {"prompt": "b", "answer": "c"}], "line 2: It has the unknown key answer."),
        ([{"prompt": "a", "messages": []}], "line 1: It has neither messages nor a prompt."),
        ([{"prompt": 3}], "line 1: It has neither"),
        ([{"messages": []}], "line 1: A conversation needs"),
        ([{"messages": [{"role": "user"}]}], "line 1: A message needs a content"),
        ([{"prompt": "a", "schema": "object"}], "line 1: Its schema is no JSON object."),
        (['{"prompt": "\\ud800"}'], "line 1: A message holds half a character"),
        ([], "has no prompt"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_line(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_prompt_set(write(tmp_path, "p.jsonl", *rows))
    assert said in refused.value.message
    assert "\n" not in refused.value.message


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompt_set(str(tmp_path / "latin.txt"))
    with pytest.raises(UserError):
        read_prompt_set(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="No file"):
        read_prompt_set("")
    monkeypatch.setattr(prompt_set, "PROMPT_LIMIT", 3)
    path = write(tmp_path, "many.txt", "1", "2", "3", "4")
    with pytest.raises(UserError, match="more than 3 prompts"):
        read_prompt_set(path)
    assert len(read_prompt_set(path, limit=2).items) == 2
    monkeypatch.setattr(prompt_set, "LINE_LIMIT", 10)
    with pytest.raises(UserError, match="line 2 has more than"):
        read_prompt_set(write(tmp_path, "long.txt", "1", "2" * 20))


def test_the_hash_is_of_what_is_asked_and_scored(tmp_path: Path) -> None:
    first = read_prompt_set(write(tmp_path, "a.jsonl", {"prompt": "a", "expected": "b"}))
    same = read_prompt_set(write(tmp_path, "b.jsonl", {"expected": "b", "prompt": "a"}))
    other = read_prompt_set(write(tmp_path, "c.jsonl", {"prompt": "a", "expected": "c"}))
    assert first.sha256 == same.sha256 != other.sha256


def test_the_rows_of_a_share_are_those_that_the_worker_holds_out(tmp_path: Path, tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    rows = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(40)]
    # The run leaves the first out and compares the second without its end mark.
    rows[0]["completion"], rows[1]["completion"] = "", "answer 1<|im_end|>"
    path = write(tmp_path, "d.jsonl", *rows)
    settings = {
        "model": {"base": str(tiny_model_dir)},
        "data": {"train": path, "eval_share": 0.3},
        "eval": {"max_rows": 9},
    }
    config = Config.model_validate(settings)
    run = create_run(config, "d")
    add_adapter(run.adapter_path)
    run.events_path.touch()
    Chain(run.path, run.events_path).append("start", {"files": hash_data_files(config.data)})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id], settings=mask_settings(config, str(tiny_model_dir)))
    _, held_out = Loader(config, encoder).training()
    assert held_out is not None
    found = EvaluationRequest((run.id,)).prepare().prompts
    assert [item.question for item in found.items] == [example.prompt[-1].content for example in held_out.examples]
    assert len(found.items) == 9
    assert [item.id for item in found.items] == [str(place.line) for place in held_out.places]
    assert found.name == f"{path}, held out"
    write(tmp_path, "d.jsonl", *rows, {"prompt": "one more", "completion": "row"})
    with pytest.raises(UserError, match=r"d\.jsonl has changed since the run, so the rows"):
        EvaluationRequest((run.id,)).prepare()

"""Dataset references in a configuration: files, directories, and entries of other tools' registries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core import paths
from core.config.document import load_config
from core.config.schema import DataSection
from core.data.conversation import Example
from core.data.formats.detect import SAMPLE, refuse_untrainable
from core.data.registries.resolve import resolve_source, single_source, training_sources
from core.data.registries.source import DataSource
from core.errors import UserError
from core.hub.store import Record, note_ref, repository_dir
from core.hub_uri import HubEntry
from tests.cases import cases
from tests.core.data.conversations import spoken
from tests.core.data.sample_files import json_lines, pairs, write

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def examples(source: DataSource) -> list[Example]:
    rows = list(source.rows())
    detection = source.detect(rows[:SAMPLE])
    return [detection.example(row) for row in rows]


def entry(directory: Path, values: Any, *rows: dict[str, Any]) -> DataSource:
    """An entry of a ``dataset_info.json`` beside ``rows.jsonl``."""
    write(directory / "rows.jsonl", json_lines(rows or [{}]))
    registry = write(directory / "dataset_info.json", json.dumps({"mine": values, "other": {}}))
    return single_source(f"{registry}#mine")


def test_a_file_and_a_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "a#b" / "c#d.jsonl", json_lines(pairs(2)))
    for reference in (path, path.parent):
        source = single_source(str(reference), "prompt_completion")
        assert (source.path, source.format, source.columns) == (reference, "prompt_completion", None)
        assert [spoken(example)[0] for example in examples(source)] == [("user", "q0"), ("user", "q1")]
    mapped = single_source(str(path), "auto", {"user": "completion", "assistant": "prompt"})
    assert spoken(examples(mapped)[0]) == [("user", "a0"), ("assistant", "q0")]


def test_an_alpaca_entry_with_the_usual_columns(tmp_path: Path) -> None:
    rows = [{"instruction": "do", "input": "it", "output": "done"}, {"instruction": "do", "input": "", "output": "so"}]
    source = entry(tmp_path, {"file_name": "rows.jsonl"}, *rows)
    assert [spoken(example) for example in examples(source)] == [
        [("user", "do\nit"), ("assistant", "done")],
        [("user", "do"), ("assistant", "so")],
    ]
    assert len(list(entry(tmp_path, {"file_name": "rows.jsonl", "num_samples": 1}, *rows).rows())) == 1


def test_columns_that_are_given_leave_no_others(tmp_path: Path) -> None:
    columns = {"prompt": "q", "response": "a", "system": "s", "history": "h"}
    row = {"q": "x", "a": "y", "s": "sys", "h": [["q0", "a0"]], "input": "not this"}
    source = entry(tmp_path, {"file_name": "rows.jsonl", "columns": columns}, row)
    assert [content for _, content in spoken(examples(source)[0])] == ["sys", "q0", "a0", "x", "y"]


def test_continued_pre_training_maps_the_prompt_alone(tmp_path: Path) -> None:
    source = entry(tmp_path, {"file_name": "rows.jsonl", "columns": {"prompt": "body"}}, {"body": "words"})
    assert examples(source)[0].text == "words"


def test_sharegpt_entries_with_tags_and_tools(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "weather?"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"city": "Ulm"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
    columns = {"messages": "conversations", "tools": "tools", "system": "sys"}
    row = {"conversations": turns, "tools": '[{"name": "look", "parameters": {}}]', "sys": "s"}
    values = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": columns}
    example = examples(entry(tmp_path, values, row))[0]
    assert [message.role for message in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[2].tool_calls[0]["function"] == {"name": "look", "arguments": {"city": "Ulm"}}
    assert example.tools[0]["function"]["name"] == "look"

    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "A", "assistant_tag": "B"}
    named = [{"who": "A", "said": "x"}, {"who": "B", "said": "y"}]
    values = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": tags}
    assert spoken(examples(entry(tmp_path, values, {"talk": named}))[0]) == [("user", "x"), ("assistant", "y")]

    values = {"file_name": "rows.jsonl", "formatting": "openai", "columns": {"messages": "messages"}}
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    assert spoken(examples(entry(tmp_path, values, row))[0]) == [("user", "x"), ("assistant", "y")]


def test_preference_and_kto_entries_are_read_and_not_trained_on(tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "query": "input", "chosen": "good", "rejected": "bad"}
    row: dict[str, Any] = {"instruction": "do", "input": "it", "good": "yes", "bad": "no"}
    source = entry(tmp_path, {"file_name": "rows.jsonl", "ranking": True, "columns": columns}, row)
    example = examples(source)[0]
    assert (spoken(example), example.answer, example.rejected[0].content) == ([("user", "do\nit")], "yes", "no")

    turns = {"conversations": [{"from": "human", "value": "x"}]}
    answers = {"chosen": {"from": "gpt", "value": "y"}, "rejected": {"from": "gpt", "value": "z"}}
    values = {
        "file_name": "rows.jsonl",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    }
    assert examples(entry(tmp_path, values, turns | answers))[0].rejected[0].content == "z"

    values = {
        "file_name": "rows.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "label": True}
    source = entry(tmp_path, values, row)
    assert examples(source)[0].label is True
    refuse_untrainable(source.detect(source.rows()), "x", "kto")
    with pytest.raises(UserError, match=r"labeled good or bad, and train\.objective is sft"):
        refuse_untrainable(source.detect(source.rows()), "x", "sft")


@cases(
    ("values", "part", "hint"),
    [
        ({"file_name": "rows.jsonl", "format": "sharegpt"}, "the unknown key format", "Did you mean formatting?"),
        ({"file_name": "rows.jsonl", "colums": {}}, "the unknown key colums", "Did you mean columns?"),
        ({"file_name": "rows.jsonl", "columns": {"promt": "q"}}, "the unknown key promt", "Did you mean prompt?"),
        ({"file_name": "rows.jsonl", "formatting": "chatml"}, "the formatting chatml", "alpaca, sharegpt, openai"),
        ({"file_name": "rows.jsonl", "columns": {"images": "i"}}, "names no column to learn from", ""),
        ({"hf_hub_url": "a/b", "file_name": "rows.jsonl"}, "hf://datasets/a/b#train is not on this", "fetch"),
        ({"hf_hub_url": "a/b", "split": "train[:9]"}, "is a part of one", "whole split"),
        ({"hf_hub_url": "set"}, "names no repository of the Hub", "owner/name"),
        ({"ms_hub_url": "a/b", "file_name": "rows.jsonl"}, "fetched from the net (ms_hub_url)", "file_name"),
        ({"file_name": "rows.jsonl", "ranking": True}, "name no chosen and rejected", ""),
        ({"file_name": "rows.jsonl", "num_samples": 0}, "num_samples", ""),
        ({"file_name": "rows.jsonl", "split": "test"}, "the split test", ""),
        ({"columns": {}}, "has no file_name", ""),
        ({"file_name": "rows.jsonl", "columns": {"response": "a"}}, "nothing that is asked", ""),
        ({"file_name": "rows.jsonl", "columns": {"prompt": 3}}, "columns.prompt is no text", ""),
        ([], "is no object", ""),
    ],
)
def test_entries_that_are_refused(tmp_path: Path, values: Any, part: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        entry(tmp_path, values)
    assert part in caught.value.message
    assert caught.value.hint
    assert hint in caught.value.hint


def test_a_registry_itself_and_names_that_are_not_in_it(tmp_path: Path) -> None:
    entry(tmp_path, {"file_name": "rows.jsonl"})
    registry = tmp_path / "dataset_info.json"
    with pytest.raises(UserError, match="is a registry of datasets: mine, other"):
        resolve_source(str(registry))
    with pytest.raises(UserError, match="has no dataset mime") as caught:
        resolve_source(f"{registry}#mime")
    assert caught.value.hint == "Did you mean mine?"
    with pytest.raises(UserError, match="a name behind # stands for"):
        resolve_source(f"{tmp_path / 'rows.jsonl'}#mine")
    write(registry, "{")
    with pytest.raises(UserError, match="is not JSON"):
        resolve_source(f"{registry}#mine")


def test_axolotl_files_directories_and_splits(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train-0.jsonl", json_lines(pairs(1)))
    write(tmp_path / "set" / "test-0.jsonl", json_lines(pairs(1, 5)))
    kind = "type: {field_instruction: prompt, field_output: completion}"
    config = write(
        tmp_path / "config.yaml",
        f"datasets:\n - {{path: set, split: test, {kind}}}\n"
        f" - {{path: json, data_files: [set/train-0.jsonl, set/test-0.jsonl], {kind}}}\n"
        f" - {{path: set, data_files: train-0.jsonl, {kind}}}\n",
    )
    found = [spoken(example)[0][1] for source in resolve_source(str(config)) for example in examples(source)]
    assert found == ["q5", "q0", "q5", "q0"]
    assert [source.path.name for source in resolve_source(f"{config}#3")] == ["train-0.jsonl"]
    assert len(resolve_source(f"{config}#json")) == 2
    with pytest.raises(UserError, match="has no dataset 9"):
        resolve_source(f"{config}#9")
    with pytest.raises(UserError, match="names 4 datasets"):
        single_source(str(config))


@cases("text", ["", "x: 1", "- 1", "datasets: []", "datasets: {}", "a: [", "datasets: [3]"])
def test_a_yaml_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_source(str(write(tmp_path / "config.yml", text)))
    assert caught.value.hint


def put_on_this_machine(repository: str, files: dict[str, str]) -> None:
    """As if it had been fetched."""
    entry = HubEntry("dataset", repository)
    directory = paths.make_private_dir(repository_dir(entry) / COMMIT)
    for name, content in files.items():
        write(directory / name, content)
    sizes = {name: len(content) for name, content in files.items()}
    record = Record(repository, COMMIT, sizes, (), frozenset(sizes))
    (directory / "localtune.json").write_text(record.to_json())
    note_ref(entry, COMMIT)


def test_hub_datasets_of_other_tools_are_read_once_they_are_fetched(tmp_path: Path) -> None:
    config = write(
        tmp_path / "config.yml",
        "datasets:\n - {path: org/name, type: alpaca}\n - {path: org/name, split: test, type: alpaca}\n"
        " - {path: org/name, data_files: [en/train.jsonl, en/test.jsonl], type: alpaca}\n"
        " - {path: org/name, name: en, type: alpaca, revision: v1}\n"
        " - {path: 'hf://datasets/org/name#en', type: alpaca}\n",
    )
    with pytest.raises(UserError, match=r"hf://datasets/org/name#train is not on this machine"):
        resolve_source(f"{config}#1")
    pair = '{{"instruction": "{0}", "output": "a"}}\n'
    put_on_this_machine("org/name", {f"en/{name}.jsonl": pair.format(name) for name in ("train", "test")})
    found = {
        number: [spoken(row)[0][1] for source in resolve_source(f"{config}#{number}") for row in examples(source)]
        for number in (1, 2, 3, 5)
    }
    assert found == {1: ["train"], 2: ["test"], 3: ["train", "test"], 5: ["train"]}
    with pytest.raises(UserError, match=r"hf://datasets/org/name@v1#en/train is not on this machine"):
        resolve_source(f"{config}#4")
    source = entry(tmp_path, {"hf_hub_url": "org/name", "subset": "en", "split": "test", "num_samples": 1})
    assert [spoken(example)[0][1] for example in examples(source)] == ["test"]
    # A directory of that name beside the configuration goes before.
    write(tmp_path / "org" / "name" / "own.jsonl", pair.format("own"))
    assert [spoken(example)[0][1] for source in resolve_source(f"{config}#1") for example in examples(source)] == [
        "own"
    ]


def test_what_a_run_reads_of_a_hub_is_written_down_with_its_commit(tmp_path: Path) -> None:
    config = write(tmp_path / "run.toml", 'data.train = "hf://datasets/org/name/en"\n')
    assert load_config(config).data.train == "hf://datasets/org/name/en"
    put_on_this_machine("org/name", {"en/train.jsonl": json_lines(pairs(2))})
    pinned = load_config(config).data.train
    assert pinned == f"hf://datasets/org/name@{COMMIT}/en"
    assert [len(list(source.rows())) for source in resolve_source(str(pinned))] == [2]


def test_weights_go_with_the_entries(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"{name}.jsonl", json_lines(pairs(1)))) for name in "ab"]
    found = training_sources(DataSection(train=paths, weights=[2, 0.5]))
    assert [(sources[0].path.name, weight) for sources, weight in found] == [("a.jsonl", 2), ("b.jsonl", 0.5)]
    assert [weight for _, weight in training_sources(DataSection(train=paths))] == [1, 1]
    with pytest.raises(UserError, match=r"data\.weights has 1 numbers and data\.train 2 entries"):
        training_sources(DataSection(train=paths, weights=[1]))
    with pytest.raises(UserError, match="both say what is held out"):
        training_sources(DataSection(train=paths, eval=paths[0], eval_share=0.1))

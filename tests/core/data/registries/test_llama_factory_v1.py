"""Dataset lists of LLaMA-Factory's second generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import paths
from core.data.conversation import Example
from core.data.files.rows import Row
from core.data.formats.detect import SAMPLE
from core.data.registries.llama_factory import is_dataset_list
from core.data.registries.resolve import flat_sources, resolve_source, single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from core.hub.store import NotFetchedError
from tests.cases import cases
from tests.core.data.sample_files import json_lines, write

ROW = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "value": "hi"}], "loss_weight": 0.0},
        {"role": "assistant", "content": [{"type": "text", "value": "Hello!"}], "loss_weight": 1.0},
    ]
}


def dataset_list(directory: Path, **entries: Any) -> Path:
    """A file of datasets, beside ``rows.jsonl``, which holds one row of the standard format."""
    if not (directory / "rows.jsonl").exists():
        write(directory / "rows.jsonl", json_lines([ROW]))
    return write(directory / "v1.yaml", yaml.safe_dump(entries))


def first(source: DataSource) -> Example:
    rows: list[Row] = list(source.rows())
    return source.detect(rows[:SAMPLE]).example(rows[0])


def test_rows_of_the_standard_format(tmp_path: Path) -> None:
    file = dataset_list(tmp_path, mine={"path": "rows.jsonl", "source": "local"})
    source = single_source(f"{file}#mine")
    assert [(message.role, message.content, message.train) for message in first(source).messages] == [
        ("user", "hi", None),
        ("assistant", "Hello!", True),
    ]
    assert source.name == f"{file}#mine"
    assert source.note == ""


def test_all_datasets_of_a_file_or_one_by_name(tmp_path: Path) -> None:
    entry = {"path": "rows.jsonl", "source": "local"}
    file = dataset_list(tmp_path, one=entry, two={**entry, "size": 1, "weight": 1.0, "streaming": True})
    assert [source.name.rpartition("#")[2] for source in flat_sources(str(file))] == ["one", "two"]
    assert [source.limit for source in flat_sources(str(file))] == [None, 1]
    with pytest.raises(UserError, match="has no dataset twp") as caught:
        resolve_source(f"{file}#twp")
    assert caught.value.hint == "Did you mean two?"


@cases(
    ("converter", "row", "said"),
    [
        ("alpaca", {"instruction": "do", "input": "it", "output": "done", "system": "s"}, ["s", "do\nit", "done"]),
        ("alpaca", {"instruction": "do", "output": "done"}, ["do", "done"]),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q", "a"]),
        (
            "pair",
            {
                "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
                "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
            },
            ["q", "good", "bad"],
        ),
    ],
)
def test_converters(tmp_path: Path, converter: str, row: dict[str, Any], said: list[str]) -> None:
    write(tmp_path / "rows.jsonl", json_lines([row]))
    file = dataset_list(tmp_path, mine={"path": "rows.jsonl", "source": "local", "converter": converter})
    example = first(single_source(f"{file}#mine"))
    assert [turn.content for turn in (*example.messages, *example.chosen, *example.rejected)] == said


def test_paths_start_where_llama_factory_is_run(tmp_path: Path) -> None:
    """Its own lists lie in ``data`` and name ``data/rows.jsonl``; the file is then beside the list."""
    file = dataset_list(tmp_path / "data", mine={"path": "data/rows.jsonl", "source": "local"})
    source = single_source(f"{file}#mine")
    assert source.path.resolve() == (tmp_path / "data" / "rows.jsonl").resolve()
    assert first(source).answer == "Hello!"
    write(tmp_path / "other.jsonl", json_lines([ROW]))
    outside = dataset_list(tmp_path / "data", mine={"path": "other.jsonl", "source": "local"})
    assert "outside of its directory" in single_source(f"{outside}#mine").note


def test_a_list_that_was_downloaded_reaches_only_its_own_download(tmp_path: Path) -> None:
    download = paths.datasets_dir() / "a--b" / "commit"
    write(tmp_path / "secret.jsonl", json_lines([ROW]))
    file = dataset_list(download, mine={"path": str(tmp_path / "secret.jsonl"), "source": "local"})
    with pytest.raises(UserError, match="did not come with the download"):
        single_source(f"{file}#mine")


def test_a_dataset_of_the_hub_must_have_been_fetched(tmp_path: Path) -> None:
    file = dataset_list(tmp_path, mine={"path": "org/name", "split": "test"})
    with pytest.raises(NotFetchedError) as caught:
        single_source(f"{file}#mine")
    assert str(caught.value.entry) == "hf://datasets/org/name#test"


@cases(
    ("entry", "part"),
    [
        ({"path": "rows.jsonl", "source": "local", "converters": "alpaca"}, "unknown key converters"),
        ({"path": "rows.jsonl", "source": "local", "converter": "kto"}, "converter kto"),
        ({"path": "rows.jsonl", "source": "local", "converter": ["pair"]}, "converter"),
        ({"path": "rows.jsonl", "source": "local", "split": "test"}, "split test, and files have none"),
        ({"path": "rows.jsonl", "source": "local", "size": 0}, "size must be a whole number"),
        ({"path": "rows.jsonl", "source": "local", "weight": 0.5}, "weight of its own"),
        ({"path": "org/name", "source": "ms_hub"}, "fetched from the net"),
        ({"path": "org/name", "source": "s3"}, "the source s3"),
        ({"path": "no name of a dataset"}, "no name of a dataset"),
        ({"path": " ", "source": "local"}, "has an empty path"),
    ],
)
def test_what_is_not_read_names_the_entry(tmp_path: Path, entry: dict[str, Any], part: str) -> None:
    file = dataset_list(tmp_path, mine=entry)
    with pytest.raises(UserError) as caught:
        single_source(f"{file}#mine")
    assert f"{file}#mine" in caught.value.message
    assert part in caught.value.message
    assert caught.value.hint


@cases(
    "values",
    [
        None,
        [],
        {},
        {"datasets": [{"path": "x"}]},
        {"a": {"path": "x"}, "base_model": "y"},
        {"a": {"path": 3}},
        {"a": {}},
    ],
)
def test_other_files_are_no_lists_of_datasets(values: object) -> None:
    assert not is_dataset_list(values)
    assert is_dataset_list({"a": {"path": "x"}, "b": {"path": "y", "odd": json.loads("1")}})

"""Dataset references in a configuration: files, directories, and entries of other tools' registries."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import paths
from core.config.document import load_config
from core.config.schema import Config, DataSection
from core.data.conversation import Example
from core.data.formats.detect import SAMPLE
from core.data.registries import resolve
from core.data.registries.llama_factory import is_dataset_list
from core.data.registries.resolve import DataHashes, flat_sources, resolve_source, single_source, training_sources
from core.data.registries.source import DataSource
from core.errors import UserError
from core.hub.store import NotFetchedError, Record, note_ref, repository_dir
from core.hub_uri import HubEntry
from core.models.find import hub_cache_dir
from tests.cases import cases
from tests.core.data.conversations import spoken
from tests.core.data.sample_files import json_lines, pairs, write

CASES = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))

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


ROW = '{"instruction": "q", "input": "", "output": "a"}\n'


def directory_in(tmp_path: Path) -> Path:
    """A directory of the user's with a data file in it, and another one beside it."""
    directory = tmp_path / "own"
    (directory / "data").mkdir(parents=True)
    (directory / "rows.jsonl").write_text(ROW)
    (directory / "data" / "rows.jsonl").write_text(ROW)
    (tmp_path / "elsewhere.jsonl").write_text(ROW)
    return directory


def llama_factory(directory: Path, file_name: str) -> list[DataSource]:
    registry = directory / "dataset_info.json"
    registry.write_text(json.dumps({"set": {"file_name": file_name}}))
    return resolve_source(f"{registry}#set")


def axolotl(directory: Path, path: str, **more: Any) -> list[DataSource]:
    registry = directory / "run.yml"
    registry.write_text(yaml.safe_dump({"datasets": [{"path": path, "type": "alpaca", **more}]}))
    return resolve_source(str(registry))


READERS = cases("read", [llama_factory, axolotl])


@READERS
@cases("name", ["rows.jsonl", "data/rows.jsonl", "data", "data/../rows.jsonl"])
def test_a_file_beside_the_registry_needs_no_word(tmp_path: Path, read: Any, name: str) -> None:
    own = directory_in(tmp_path)
    (source,) = read(own, name)
    assert source.note == ""


@READERS
@cases("form", ["absolute", "upward", "link", "linked directory"])
def test_a_file_elsewhere_is_reported_with_the_rows(tmp_path: Path, read: Any, form: str) -> None:
    own = directory_in(tmp_path)
    elsewhere = own.parent / "elsewhere.jsonl"
    (own / "link.jsonl").symlink_to(elsewhere)
    (own / "linked").symlink_to(own.parent)
    name = {
        "absolute": str(elsewhere),
        "upward": "../elsewhere.jsonl",
        "link": "link.jsonl",
        "linked directory": "linked/elsewhere.jsonl",
    }[form]
    (source,) = read(own, name)
    with source.open() as file:
        reason = source.detect(file.rows(0, 9)).reason
    assert reason.endswith(f"names a file outside of its directory: {elsewhere}.")


def test_each_of_several_files_is_looked_at(tmp_path: Path) -> None:
    sources = axolotl(directory_in(tmp_path), "json", data_files=["rows.jsonl", "../elsewhere.jsonl"])
    assert [bool(source.note) for source in sources] == [False, True]


@READERS
@cases("place", ["dataset", "cache"])
def test_a_registry_that_was_downloaded_reaches_only_what_came_with_it(
    tmp_path: Path, read: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = directory_in(tmp_path)
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(own.parent / "hub"))
    root = paths.datasets_dir() / "me--set" if place == "dataset" else hub_cache_dir() / "datasets--me--set"
    directory = root / "snapshots" / "a"
    (root / "blobs").mkdir(parents=True)
    directory.mkdir(parents=True)
    (root / "blobs" / "1").write_text(ROW)
    (root.parent / "other.jsonl").write_text(ROW)
    # As the cache of the hub keeps its files.
    (directory / "rows.jsonl").symlink_to("../../blobs/1")
    (source,) = read(directory, "rows.jsonl")
    assert source.note == ""
    (directory / "link.jsonl").symlink_to(own.parent / "elsewhere.jsonl")
    for name in (str(own.parent / "elsewhere.jsonl"), "../../../other.jsonl", "link.jsonl", "/etc/passwd"):
        with pytest.raises(UserError, match="did not come with the download") as caught:
            read(directory, name)
        assert "Copy the registry" in caught.value.hint


def test_a_link_to_a_registry_that_was_downloaded_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    directory = hub_cache_dir() / "datasets--me--set"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text(json.dumps({"set": {"file_name": "rows.jsonl"}}))
    (tmp_path / "dataset_info.json").symlink_to(directory / "dataset_info.json")
    (tmp_path / "rows.jsonl").write_text(ROW)
    with pytest.raises(UserError, match="did not come with the download"):
        resolve_source(f"{tmp_path / 'dataset_info.json'}#set")


@READERS
@cases("name", ["a\x00.jsonl", "x" * 5000, "a/" * 3000, "\ud800"])
def test_a_name_that_no_file_has_is_a_sentence(tmp_path: Path, read: Any, name: str) -> None:
    own = directory_in(tmp_path)

    def opened() -> None:
        for source in read(own, name):
            source.open()

    with pytest.raises(UserError) as caught:
        opened()
    assert str(caught.value).isprintable()


def test_a_split_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a part of one"):
        axolotl(directory_in(tmp_path), "data", split="../data")


def test_who_waits_for_the_hashes_can_be_stopped_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, read = tmp_path / "rows.jsonl", threading.Event()
    rows.write_text("{}\n")

    def hash_slowly(path: Path) -> str:
        read.wait()
        return f"the hash of {path.name}"

    def stop() -> None:
        raise InterruptedError("stopped")

    monkeypatch.setattr(resolve, "hash_file", hash_slowly)
    hashes = DataHashes(Config.model_validate({"data": {"train": str(rows)}}).data)
    with pytest.raises(InterruptedError):
        hashes.settle(stop)
    read.set()
    hashes.settle()
    assert hashes.found == {str(rows): "the hash of rows.jsonl"}


LISTED = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "value": "hi"}], "loss_weight": 0.0},
        {"role": "assistant", "content": [{"type": "text", "value": "Hello!"}], "loss_weight": 1.0},
    ]
}


def dataset_list(directory: Path, row: dict[str, Any] = LISTED, **entries: Any) -> Path:
    """List of datasets of LLaMA-Factory v1 beside ``rows.jsonl`` with one row."""
    write(directory / "rows.jsonl", json_lines([row]))
    return write(directory / "v1.yaml", yaml.safe_dump(entries))


def test_all_datasets_of_a_file_or_one_by_name(tmp_path: Path) -> None:
    entry = {"path": "rows.jsonl", "source": "local"}
    file = dataset_list(tmp_path, one=entry, two={**entry, "size": 1, "weight": 1.0, "streaming": True})
    assert [(source.name, source.note) for source in flat_sources(str(file))] == [
        (f"{file}#one", ""),
        (f"{file}#two", ""),
    ]
    assert [source.limit for source in flat_sources(str(file))] == [None, 1]
    with pytest.raises(UserError, match="has no dataset twp") as caught:
        resolve_source(f"{file}#twp")
    assert caught.value.hint == "Did you mean two?"


def test_paths_start_where_llama_factory_is_run(tmp_path: Path) -> None:
    """Its own lists lie in ``data`` and name ``data/rows.jsonl``; the file is then beside the list."""
    file = dataset_list(tmp_path / "data", mine={"path": "data/rows.jsonl", "source": "local"})
    source = single_source(f"{file}#mine")
    assert source.path.resolve() == (tmp_path / "data" / "rows.jsonl").resolve()
    assert [example.answer for example in examples(source)] == ["Hello!"]
    write(tmp_path / "other.jsonl", json_lines([LISTED]))
    outside = dataset_list(tmp_path / "data", mine={"path": "other.jsonl", "source": "local"})
    assert "outside of its directory" in single_source(f"{outside}#mine").note


def test_a_list_that_was_downloaded_reaches_only_its_own_download(tmp_path: Path) -> None:
    download = paths.datasets_dir() / "a--b" / "commit"
    write(tmp_path / "secret.jsonl", json_lines([LISTED]))
    file = dataset_list(download, mine={"path": str(tmp_path / "secret.jsonl"), "source": "local"})
    with pytest.raises(UserError, match="did not come with the download"):
        single_source(f"{file}#mine")


def test_a_dataset_of_the_hub_must_have_been_fetched(tmp_path: Path) -> None:
    file = dataset_list(tmp_path, mine={"path": "org/name", "split": "test"})
    with pytest.raises(NotFetchedError) as caught:
        single_source(f"{file}#mine")
    assert str(caught.value.entry) == "hf://datasets/org/name#test"


@cases("values", CASES["no list"])
def test_other_files_are_no_lists_of_datasets(values: object) -> None:
    assert not is_dataset_list(values)
    assert is_dataset_list({"a": {"path": "x"}, "b": {"path": "y", "odd": json.loads("1")}})

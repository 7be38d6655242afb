"""Steps, shares and weights that are known because the rows can be counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import paths
from core.analysis.division import held_out_rows, repeats
from core.data.registries.resolve import training_sources
from core.hub.store import Record
from core.importers import data_files
from core.importers.data_files import Part, read_splits
from core.importers.redact import holds_secret
from tests.cases import cases, tables
from tests.core.data.sample_files import json_lines, write
from tests.core.importers.helpers import carry, comment, entry, loaded, questions, setting
from tests.core.importers.test_axolotl import BASE as AXOLOTL

TABLES = tables(__file__)

LLAMA_FACTORY = "model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\nlora_rank: 8\ncutoff_len: 64\n"
ENTRY = "datasets: [{path: a.jsonl, type: alpaca}]\nmicro_batch_size: 4\n"


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """A directory with a file of a hundred rows."""
    write(tmp_path / "a.jsonl", questions(100))
    return tmp_path


def test_the_comment_says_from_what(hundred: Path) -> None:
    imported = carry(hundred, f"{AXOLOTL}{ENTRY}saves_per_epoch: 2\nval_set_size: 10\n")
    assert comment(imported, "checkpoint.every_steps") == "2 times in an epoch of 90 rows / batch size 4 = 23 steps."
    assert comment(imported, "data.eval_share").startswith("10 of 100 rows. ")
    assert entry(imported, "saves_per_epoch")[0] == entry(imported, "val_set_size")[0] == "changed"


@cases("path", ["gone.jsonl", "org/far", "broken.jsonl", "."])
def test_rows_that_cannot_be_counted_leave_the_keys_listed(tmp_path: Path, path: str) -> None:
    write(tmp_path / "broken.jsonl", "")
    text = f"{AXOLOTL}datasets: [{{path: {path}, type: alpaca}}]\nsaves_per_epoch: 2\nval_set_size: 10\n"
    imported = carry(tmp_path, text)
    for key in ("saves_per_epoch", "val_set_size"):
        assert entry(imported, key)[0] == "unsupported"
    assert setting(imported, "checkpoint.every_steps") is None
    assert setting(imported, "data.eval_share") is None


def test_large_files_are_not_counted(hundred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "COUNTED_BYTES", 100)
    assert entry(carry(hundred, f"{AXOLOTL}{ENTRY}saves_per_epoch: 2\n"), "saves_per_epoch")[0] == "unsupported"


def test_packed_files_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(questions(40).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    text = ENTRY.replace("a.jsonl", "a.jsonl.gz")
    imported = carry(tmp_path, f"{AXOLOTL}{text}saves_per_epoch: 1\n")
    assert setting(imported, "checkpoint.every_steps") == 10
    # A compressed file takes longer to count than its size suggests.
    monkeypatch.setattr(data_files, "COUNTED_BYTES", 2 * len(packed))
    assert entry(carry(tmp_path, f"{AXOLOTL}{text}saves_per_epoch: 1\n"), "saves_per_epoch")[0] == "unsupported"


@cases(("rows", "wanted"), [(7, 3), (97, 1), (97, 13), (1000, 333)])
def test_a_number_of_rows_is_that_number(tmp_path: Path, rows: int, wanted: int) -> None:
    write(tmp_path / "a.jsonl", questions(rows))
    share = setting(carry(tmp_path, f"{AXOLOTL}{ENTRY}val_set_size: {wanted}\n"), "data.eval_share")
    assert len(held_out_rows([str(number).encode() for number in range(rows)], share, 42)) == wanted


# LLaMA-Factory.


def registry(directory: Path, **counts: int) -> None:
    known: dict[str, Any] = {}
    for name, count in counts.items():
        write(directory / "data" / f"{name}.jsonl", questions(count))
        known[name] = {"file_name": f"{name}.jsonl"}
    known["capped"] = {"file_name": "one.jsonl", "num_samples": 10}
    write(directory / "data" / "dataset_info.json", json.dumps(known))


def test_so_many_rows_are_used_in_an_epoch(tmp_path: Path) -> None:
    registry(tmp_path, one=997, two=20)
    weights = setting(carry(tmp_path, f"{LLAMA_FACTORY}dataset: one,two\nmax_samples: 313\n"), "data.weights")
    used = [
        sum(repeats([b"%d" % number for number in range(rows)], weight, 1))
        for rows, weight in zip((997, 20), weights, strict=True)
    ]
    assert used == [313, 20]


# Findings of the rules about the result.


def test_the_rules_speak_in_the_report(hundred: Path) -> None:
    imported = carry(hundred, f"{AXOLOTL}{ENTRY}lora_dropout: 0.6\nsave_steps: 500\n")
    assert any("method.dropout is 0.6" in remark for remark in imported.remarks)
    assert any("checkpoint.every_steps is 500, and the run has 25" in remark for remark in imported.remarks)
    assert imported.to_dict()["remarks"] == imported.remarks
    assert not carry(hundred, f"{AXOLOTL}{ENTRY}").remarks


def test_a_number_of_steps_counts_alone(hundred: Path) -> None:
    imported = carry(hundred, f"{AXOLOTL}{ENTRY}num_epochs: 3\nmax_steps: 10\n")
    assert (setting(imported, "train.epochs"), setting(imported, "train.max_steps")) == (None, 10)
    assert entry(imported, "num_epochs")[0] == "carried"
    assert not imported.remarks


@cases(("text", "parts"), TABLES["parts_of_splits"])
def test_what_is_read(text: str, parts: list[list[Any]]) -> None:
    assert read_splits(text) == [Part(*part) for part in parts]


@cases("text", ["train[", "train[5]", "train[:5%:2]", "train[a:b]", "train]", "train[5%:10]"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="train"):
        read_splits(text)


@cases(("text", "rows", "share"), TABLES["a_part_of_a_split_is_a_share_of_its_rows"])
def test_a_part_of_a_split_is_a_share_of_its_rows(text: str, rows: int | None, share: float | None) -> None:
    (part,) = read_splits(text)
    assert part.share(rows) == share
    assert not part.is_whole


@given(st.text("trains[]%:+-0123456789 ", max_size=14))
def test_any_text_is_parts_or_none(text: str) -> None:
    try:
        parts = read_splits(text)
    except ValueError:
        return
    assert len(parts) == text.count("+") + 1
    assert all(part.share(10) is None or 0 <= (part.share(10) or 0) <= 1 for part in parts)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fetched(repository: str, files: dict[str, list[dict[str, Any]]]) -> None:
    """Put a dataset where ``fetch`` would."""
    directory = paths.datasets_dir() / repository.replace("/", "--")
    sizes = {}
    for name, rows in files.items():
        sizes[name] = write(directory / COMMIT / name, json_lines(rows)).stat().st_size
    write(directory / COMMIT / "localtune.json", Record(repository, COMMIT, sizes, have=frozenset(sizes)).to_json())
    write(directory / "refs.json", json.dumps({"main": COMMIT}))


ROWS = [{"instruction": f"q{number}", "input": "", "output": f"a{number}"} for number in range(20)]


def test_what_has_been_fetched_is_read_and_counted(tmp_path: Path) -> None:
    fetched("org/name", {"train.jsonl": ROWS, "test.jsonl": ROWS[:5]})
    text = f"{AXOLOTL}datasets: [{{path: org/name, type: alpaca, split: 'train[:5]'}}]\nevals_per_epoch: 1\n"
    held = "test_datasets: [{path: org/name, type: alpaca, split: test}]\nmicro_batch_size: 1\n"
    imported = carry(tmp_path, text + held)
    assert comment(imported, "data.train") == "A dataset of the Hub, which is on this machine."
    assert setting(imported, "data.weights") == [0.25]
    assert setting(imported, "eval.every_steps") == 5
    config = loaded(tmp_path, imported)
    assert config.data.train == f"hf://datasets/org/name@{COMMIT}#train"
    ((source,), weight) = training_sources(config.data)[0]
    assert (len(list(source.rows())), weight) == (20, 0.25)


def test_a_directory_of_that_name_goes_before(tmp_path: Path) -> None:
    write(tmp_path / "org" / "name" / "train.jsonl", json_lines(ROWS))
    imported = carry(tmp_path, f"{AXOLOTL}datasets: [{{path: org/name, type: alpaca, revision: v1}}]\n")
    assert setting(imported, "data.train") == "org/name"
    assert entry(imported, "datasets[1].revision")[0] == "unsupported"


def test_types_that_say_more_than_columns_are_read_from_the_file(tmp_path: Path) -> None:
    """The entries of the YAML file are read as the file says, and the others by ``data.columns``."""
    write(tmp_path / "a.jsonl", json_lines(ROWS))
    fetched("org/quiz", {"train.jsonl": [{"question": "q", "category": "c", "answer": "a"}]})
    text = f"{AXOLOTL}datasets: [{{path: a.jsonl, type: alpaca}}, {{path: org/quiz, type: jeopardy}}]\n"
    imported = carry(tmp_path, text)
    assert setting(imported, "data.train") == ["a.jsonl", "theirs.yml#2"]
    assert setting(imported, "data.columns") == {"user": "instruction", "context": "input", "assistant": "output"}
    assert entry(imported, "datasets")[0] == "changed"
    assert not [said for said in imported.unsupported if said.key.startswith("datasets[")]
    groups = training_sources(loaded(tmp_path, imported).data)
    (plain,), (quiz,) = (sources for sources, _ in groups)
    assert [message.content for message in _first(plain).messages] == ["q0", "a0"]
    assert [message.content for message in _first(quiz).messages] == ["q\nc", "what is a"]


def test_entries_of_other_places_are_not_named_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our reader begins at the file, Axolotl where it is run."""
    quiz = json_lines([{"question": "q", "category": "c", "answer": "a"}])
    write(tmp_path / "run" / "data" / "quiz.jsonl", quiz)
    (tmp_path / "run" / "configs").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    imported = carry(tmp_path / "run" / "configs", f"{AXOLOTL}datasets: [{{path: data/quiz.jsonl, type: jeopardy}}]\n")
    assert setting(imported, "data.train") == str(tmp_path / "run" / "data" / "quiz.jsonl")
    assert "data.columns cannot express" in entry(imported, "datasets[1]")[1].reason


def test_models_are_fetched_by_a_command(tmp_path: Path) -> None:
    for text, kind, wanted in (
        ("base_model: org/model\nsequence_len: 64\n", "axolotl", "hf://org/model"),
        ("base_model: org/model\nrevision_of_model: v2\n", "axolotl", "hf://org/model@v2"),
        ("model_name_or_path: org/model\nmodel_revision: main\n", "llama-factory", "hf://org/model"),
        ("model: org/model\n", "unsloth", "hf://org/model"),
    ):
        imported = carry(tmp_path, text, kind)
        assert setting(imported, "model.base") == "org/model"
        assert comment(imported, "model.base") == f"'localtune-tui fetch {wanted}' downloads it."
        assert {said.key for said in imported.changed} >= {text.partition(":")[0]}
    imported = carry(tmp_path, "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\nsequence_len: 64\n", "axolotl")
    assert comment(imported, "model.base").startswith("Did you mean smollm2-135m-instruct? 'localtune-tui fetch hf://")
    (paths.models_dir() / "org--model").mkdir(parents=True)
    imported = carry(tmp_path, "base_model: org/model\nrevision_of_model: v2\n", "axolotl")
    assert comment(imported, "model.base") == ""
    assert entry(imported, "base_model")[0] == "carried"
    assert entry(imported, "revision_of_model")[0] == "unsupported"


def test_a_registry_of_the_hub_is_read_where_llama_factory_has_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    snapshot = cache / "datasets--org--sets" / "snapshots" / COMMIT
    registry = write(snapshot / "dataset_info.json", json.dumps({"one": {"hf_hub_url": "org/one"}}))
    imported = carry(tmp_path, f"{LLAMA_FACTORY}dataset: one\ndataset_dir: 'REMOTE:org/sets'\n")
    assert setting(imported, "data.train").endswith(f"{registry.relative_to(tmp_path)}#one")
    assert "'localtune-tui fetch hf://datasets/org/one#train'" in comment(imported, "data.train")
    assert entry(imported, "dataset_dir")[0] == "changed"
    loaded(tmp_path, imported)


def test_datasets_without_a_registry_are_read_as_there(tmp_path: Path) -> None:
    fetched("org/a", {"train.jsonl": ROWS})
    imported = carry(tmp_path, f"{LLAMA_FACTORY}dataset: org/a\ndataset_dir: ONLINE\n")
    ((source,), _) = training_sources(loaded(tmp_path, imported).data)[0]
    assert [message.content for message in _first(source).messages] == ["q0", "a0"]


def test_parts_of_what_is_not_written_have_no_weights(tmp_path: Path) -> None:
    secret = "{path: 'https://u:hf_abcdefghijklmnopqrstuvwxyz@h/x', type: alpaca}"
    imported = carry(tmp_path, f"{AXOLOTL}datasets: [{{path: a/b, type: alpaca, split: 'train[:5%]'}}, {secret}]\n")
    assert setting(imported, "data.train") == "train.jsonl"
    assert setting(imported, "data.weights") is None
    assert entry(imported, "datasets[1].split")[0] == "unsupported"


def test_a_commit_is_no_secret() -> None:
    assert not holds_secret(f"hf://datasets/org/name@{COMMIT}#train")
    assert not holds_secret(f"/home/x/.cache/hub/datasets--a--b/snapshots/{COMMIT}/dataset_info.json#x")
    assert holds_secret(f"hf://datasets/org/name@main/{COMMIT}")
    assert holds_secret(COMMIT)


def _first(source: Any) -> Any:
    rows = list(source.rows())
    return source.detect(rows).example(rows[0])

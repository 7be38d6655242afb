"""LLaMA-Factory's YAML carried over: its defaults, its traps, its registry of datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.data.registries.resolve import training_sources
from core.errors import UserError
from core.importers.llama_factory import LLAMA_FACTORY
from tests.cases import cases
from tests.core.data.sample_files import json_lines, write
from tests.core.importers.helpers import assert_all_accounted, carry, comment, entry, keys_of, loaded, setting

QLORA = """\
### model
model_name_or_path: org/model
quantization_bit: 4
quantization_method: bnb
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all

### dataset
dataset: mine, talks
template: llama3
cutoff_len: 1024
max_samples: 1000
overwrite_cache: true

### output
output_dir: saves/x
logging_steps: 10
save_steps: 500
plot_loss: true
report_to: none

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.1
eval_strategy: steps
eval_steps: 100
per_device_eval_batch_size: 1
"""
BASE = "model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\nlora_rank: 8\ncutoff_len: 64\n"


def registry(directory: Path) -> None:
    """``data`` directory whose registry has two local datasets and a dataset of a hub."""
    write(directory / "data" / "mine.jsonl", json_lines([{"instruction": "q", "input": "", "output": "a"}]))
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    write(directory / "data" / "talks.jsonl", json_lines([{"conversations": talk}]))
    known = {
        "mine": {"file_name": "mine.jsonl"},
        "talks": {"file_name": "talks.jsonl", "formatting": "sharegpt"},
        "far": {"hf_hub_url": "org/far"},
        "gone": {"file_name": "gone.jsonl"},
        "scope": {"ms_hub_url": "org/far"},
        "bucket": {"cloud_file_name": "s3://b/x.jsonl"},
    }
    write(directory / "data" / "dataset_info.json", json.dumps(known))


def test_a_usual_file(tmp_path: Path) -> None:
    registry(tmp_path)
    imported = carry(tmp_path, QLORA)
    assert_all_accounted(imported, keys_of(QLORA, LLAMA_FACTORY.sections))
    assert not imported.unknown
    config = loaded(tmp_path, imported)
    base = tmp_path / "data" / "dataset_info.json"
    assert config.data.train == [f"{base}#mine", f"{base}#talks"]
    assert [sources[0].path.name for sources, _ in training_sources(config.data)] == ["mine.jsonl", "talks.jsonl"]
    method, train = config.method, config.train
    assert (method.name, method.rank, method.alpha, method.target_modules) == ("qlora", 16, 32, "all-linear")
    assert "twice the rank" in comment(imported, "method.alpha")
    assert (train.batch_size, train.micro_batch_size, train.max_length, train.epochs) == (16, 2, 1024, 2)
    assert (train.learning_rate, train.scheduler, train.warmup, train.precision) == (1e-4, "cosine", 0.1, "bf16")
    assert (config.data.eval_share, config.eval.every_steps, config.checkpoint.every_steps) == (0.1, 100, 500)
    assert (config.data.overlong, config.template.name) == ("truncate", "llama3")
    assert "truncates longer rows" in comment(imported, "data.overlong")
    assert entry(imported, "cutoff_len")[0] == "changed"
    assert entry(imported, "max_samples")[1].reason == "No entry has more."
    assert entry(imported, "report_to")[0] == "carried"


def test_its_defaults_are_not_ours(tmp_path: Path) -> None:
    imported = carry(tmp_path, "model_name_or_path: a/b\nstage: sft\n")
    for name, value in (
        ("method.name", "lora"),
        ("method.rank", 8),
        ("method.alpha", 16),
        ("train.learning_rate", 5e-5),
        ("train.epochs", 3),
        ("train.batch_size", 8),
        ("train.scheduler", "linear"),
        ("train.warmup", 0),
        ("data.overlong", "truncate"),
        ("data.train", "train.jsonl"),
    ):
        assert setting(imported, name) == value, name
        assert comment(imported, name), name
    loaded(tmp_path, imported)


def test_what_it_refuses_is_refused(tmp_path: Path) -> None:
    for lines, words in (
        ("mask_history: true\ntrain_on_prompt: true\n", "mask_history does not go with train_on_prompt"),
        ("split_special_tokens: 3\n", "split_special_tokens must be true or false, not 3"),
    ):
        with pytest.raises(UserError, match=words):
            carry(tmp_path, BASE + lines)


@cases(
    ("text", "value", "part"),
    [
        ("dataset: mine", "data/dataset_info.json#mine", "relative to"),
        ("dataset: [mine]", "data/dataset_info.json#mine", "relative to"),
        ("dataset: mime", "data/dataset_info.json#mime", "Did you mean mine?"),
        ("dataset: far", "data/dataset_info.json#far", "'localtune-tui fetch hf://datasets/org/far#train'"),
        ("dataset: scope", "data/dataset_info.json#scope", "fetched from the net (ms_hub_url)"),
        ("dataset: bucket", "data/dataset_info.json#bucket", "fetched from the net (cloud_file_name)"),
        ("dataset: gone", "data/dataset_info.json#gone", "is not there"),
        ("dataset: mine\ndataset_dir: elsewhere", "elsewhere/dataset_info.json#mine", "There is no"),
        ("dataset: org/x\ndataset_dir: ONLINE", "hf://datasets/org/x#train", "localtune-tui fetch"),
        ("dataset: x\ndataset_dir: ONLINE", "x", "hf://datasets/owner/name"),
        ("dataset: x\ndataset_dir: 'REMOTE:org/y'", "x", "of the Hub, in org/y"),
    ],
)
def test_entries_of_the_registry(tmp_path: Path, text: str, value: str, part: str) -> None:
    registry(tmp_path)
    imported = carry(tmp_path, f"{BASE}{text}\n")
    assert setting(imported, "data.train").endswith(value)
    where, said = entry(imported, "dataset")
    assert where == ("changed" if part == "relative to" or "localtune-tui fetch" in part else "unsupported")
    assert part in said.reason
    loaded(tmp_path, imported)


def test_rows_to_measure_on(tmp_path: Path) -> None:
    registry(tmp_path)
    imported = carry(tmp_path, f"{BASE}dataset: mine\neval_dataset: talks\nval_size: 0.1\n")
    config = loaded(tmp_path, imported)
    assert config.data.eval == f"{tmp_path}/data/dataset_info.json#talks"
    assert config.data.eval_share == 0
    assert entry(imported, "val_size")[0] == "unsupported"


def test_an_entry_with_pictures_is_carried_with_a_word_about_its_rows(tmp_path: Path) -> None:
    registry(tmp_path)
    known = tmp_path / "data" / "dataset_info.json"
    columns = {"messages": "conversations", "images": "shown"}
    values = {"file_name": "talks.jsonl", "formatting": "sharegpt", "columns": columns}
    write(known, json.dumps({**json.loads(known.read_text()), "seen": values}))
    where, said = entry(carry(tmp_path, f"{BASE}dataset: seen\n"), "dataset")
    assert where == "changed"
    assert "rows with anything in shown are not used" in said.reason

"""Axolotl's YAML carried over: its rules, its traps, its datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.data.formats.detect import SAMPLE
from core.data.registries.resolve import training_sources
from core.errors import UserError
from core.importers.axolotl import AXOLOTL
from tests.cases import cases
from tests.core.data.sample_files import json_lines, write
from tests.core.importers.helpers import assert_all_accounted, carry, comment, entry, keys_of, loaded, rows, setting

QLORA = """\
base_model: meta/llama
load_in_8bit: false
load_in_4bit: true
adapter: qlora
datasets:
  - path: rows.jsonl
    type:
      field_instruction: prompt
      field_output: completion
val_set_size: 0.1
sequence_len: 1024
sample_packing: false
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
wandb_project:
special_tokens:
  pad_token: "<|end|>"
"""
BASE = "base_model: a/b\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nsequence_len: 64\nlearning_rate: 1e-4\n"


def test_a_usual_file(tmp_path: Path) -> None:
    rows(tmp_path / "rows.jsonl")
    imported = carry(tmp_path, QLORA)
    assert_all_accounted(imported, keys_of(QLORA, AXOLOTL.sections))
    assert not imported.unknown
    config = loaded(tmp_path, imported)
    assert config.data.train == str(tmp_path / "rows.jsonl")
    assert config.data.columns == {"user": "prompt", "context": "input", "assistant": "completion", "system": "system"}
    method, train = config.method, config.train
    assert (method.name, method.rank, method.alpha, method.dropout) == ("qlora", 32, 16, 0.05)
    assert method.target_modules == "all-linear"
    assert (train.batch_size, train.micro_batch_size, train.max_length, train.epochs) == (8, 2, 1024, 3)
    assert (train.learning_rate, train.optimizer, train.warmup) == (2e-4, "paged_adamw_8bit", 0.1)
    assert config.data.eval_share == 0.1
    assert config.data.overlong == "drop"
    assert config.memory.gradient_checkpointing == "on"
    assert entry(imported, "learning_rate")[1].reason.startswith("YAML reads this as text")
    assert entry(imported, "sample_packing")[0] == "carried"
    assert entry(imported, "special_tokens")[1].value == {"pad_token": "<|end|>"}
    for key in ("evals_per_epoch", "saves_per_epoch"):
        where, said = entry(imported, key)
        assert where == "changed"
        assert "2 rows / batch size 8 = 1 steps" in said.reason
    assert "2 at once x 4 accumulated" in comment(imported, "train.batch_size")
    assert comment(imported, "train.max_length") == ""


def test_defaults_that_are_not_ours_are_written(tmp_path: Path) -> None:
    imported = carry(tmp_path, "base_model: a/b\nmicro_batch_size: 1\n")
    assert setting(imported, "train.max_length") == 512
    assert "512" in comment(imported, "train.max_length")
    assert entry(imported, "sequence_len") == ("changed", entry(imported, "sequence_len")[1])
    assert entry(imported, "sequence_len")[1].value is None


@cases(
    ("text", "line", "part"),
    [
        ("adapter: qlora", 3, "adapter is qlora, which needs load_in_4bit: true"),
        ("adapter: qlora\nload_in_4bit: false", 3, "needs load_in_4bit"),
        ("adapter: qlora\nload_in_4bit: true\nload_in_8bit: true", 5, "load_in_8bit does not go with adapter: qlora"),
        ("adapter: qlora\nload_in_4bit: true\ngptq: true", 5, "gptq does not go with"),
        ("load_in_4bit: true", 3, "load_in_4bit needs an adapter"),
        ("load_in_8bit: true", 3, "load_in_8bit needs an adapter"),
    ],
)
def test_what_axolotl_refuses_is_refused(tmp_path: Path, text: str, line: int, part: str) -> None:
    with pytest.raises(UserError) as caught:
        carry(tmp_path, f"base_model: a/b\nsequence_len: 64\n{text}\n")
    assert f", line {line}: " in caught.value.message
    assert part in caught.value.message
    assert caught.value.hint


def test_the_two_names_of_noise_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"theirs\.yml, line \d+: noisy_embedding_alpha is the old name"):
        carry(tmp_path, f"{BASE}noisy_embedding_alpha: 5\nneftune_noise_alpha: 5\n")


# Evaluation.


def test_rows_to_measure_on(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl")
    rows(tmp_path / "b.jsonl")
    text = (
        f"{BASE}datasets: [{{path: a.jsonl, type: completion, field: prompt}}]\n"
        "test_datasets: [{path: b.jsonl, type: completion, field: prompt, split: train}]\nval_set_size: 0.1\n"
    )
    imported = carry(tmp_path, text)
    config = loaded(tmp_path, imported)
    assert config.data.eval == str(tmp_path / "b.jsonl")
    assert config.data.eval_share == 0
    assert entry(imported, "val_set_size")[0] == "unsupported"


# Its datasets.


def learned(directory: Path, text: str) -> list[list[tuple[str, str]]]:
    """Turns of each row of an imported file's data; a text is a turn of its own."""
    config = loaded(directory, carry(directory, f"{BASE}{text}"))
    found = []
    for sources, _ in training_sources(config.data):
        for source in sources:
            detection = source.detect(list(source.rows())[:SAMPLE])
            for row in source.rows():
                example = detection.example(row)
                turns = [(message.role, message.content) for message in example.messages]
                found.append(turns or [("text", example.text or str(list(example.ids or [])))])
    return found


def test_each_type_is_read_as_it_says(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "hi"}, {"from": "bot", "value": "ho"}]
    write(tmp_path / "talk.jsonl", json_lines([{"talk": talk}]))
    write(tmp_path / "qa.jsonl", json_lines([{"question": "q", "answer": "a"}]))
    write(tmp_path / "alpaca.jsonl", json_lines([{"instruction": "do", "input": "it", "output": "done"}]))
    write(tmp_path / "text.jsonl", json_lines([{"body": "words"}]))
    write(tmp_path / "ids.jsonl", json_lines([{"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [-100, 2]}]))
    chat = (
        "{path: talk.jsonl, type: chat_template, field_messages: talk, "
        "message_property_mappings: {role: from, content: value}, roles: {user: [human], assistant: [bot]}}"
    )
    assert learned(tmp_path, f"datasets: [{chat}]\n") == [[("user", "hi"), ("assistant", "ho")]]
    assert learned(tmp_path, "datasets: [{path: qa.jsonl, type: alpaca_chat.load_qa}]\n") == [
        [("user", "q"), ("assistant", "a")]
    ]
    assert learned(tmp_path, "datasets: [{path: alpaca.jsonl, type: alpaca}]\n") == [
        [("user", "do\nit"), ("assistant", "done")]
    ]
    assert learned(tmp_path, "datasets: [{path: text.jsonl, type: completion, field: body}]\n") == [[("text", "words")]]
    assert learned(tmp_path, "datasets: [{path: ids.jsonl, type: }]\n") == [[("text", "[1, 2]")]]
    assert learned(tmp_path, "pretraining_dataset: [{path: text.jsonl, text_column: body}]\n") == [[("text", "words")]]
    assert learned(tmp_path, "pretraining_dataset: {path: text.jsonl, text_column: body}\n") == [[("text", "words")]]
    # Of several types, each entry is read as the file says.
    prompted = "{field_instruction: question, field_output: answer, system_prompt: be brief}"
    assert learned(tmp_path, f"datasets: [{{path: qa.jsonl, type: {prompted}}}]\n") == [
        [("system", "be brief"), ("user", "q"), ("assistant", "a")]
    ]
    both = f"datasets: [{chat}, {{path: text.jsonl, type: completion, field: body}}]\n"
    assert learned(tmp_path, both) == [[("user", "hi"), ("assistant", "ho")], [("text", "words")]]


def test_instruction_types_bring_their_form_along(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", json_lines([{"instruction": "do", "output": "done"}]))
    text = f"{BASE}datasets: [{{path: a.jsonl, type: alpaca}}]\nchat_template: llama3\n"
    imported = carry(tmp_path, text)
    assert setting(imported, "template.name") == "alpaca"
    assert comment(imported, "template.name")
    assert entry(imported, "chat_template")[0] == "unsupported"
    styles = (("alpaca:chat", "vicuna"), ("alpaca:phi", "phi3"), ("metharme", None), ("chat_template", "llama3"))
    for kind, name in styles:
        other = carry(tmp_path, text.replace("type: alpaca", f"type: '{kind}'"))
        assert setting(other, "template.name") == (name or "llama3"), kind


def test_files_splits_and_loaders(tmp_path: Path) -> None:
    rows(tmp_path / "set" / "train-0.jsonl")
    rows(tmp_path / "set" / "test-0.jsonl")
    cases: tuple[tuple[str, str | list[str]], ...] = (
        ("{path: set, split: train, type: completion}", "set#train"),
        ("{path: set, split: validation, type: completion}", "set"),
        ("{path: json, data_files: [set/train-0.jsonl], ds_type: json, type: completion}", "set/train-0.jsonl"),
        ("{path: set, data_files: test-0.jsonl, type: completion}", "set/test-0.jsonl"),
        ("{path: set, split: train+test, type: completion}", ["set#train", "set#test"]),
        ("{path: squad, type: completion}", "squad"),
        ("{path: 's3://bucket/x.jsonl', type: completion}", "s3://bucket/x.jsonl"),
    )
    for text, value in cases:
        imported = carry(tmp_path, f"{BASE}datasets: [{text}]\n")
        assert setting(imported, "data.train") == value, text
        there = value[0].startswith("set") if isinstance(value, list) else value.startswith("set")
        assert entry(imported, "datasets")[0] == ("changed" if there else "unsupported"), text
        loaded(tmp_path, imported)


def test_entries_that_are_not_done_are_said_one_by_one(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl")
    text = (
        f"{BASE}datasets:\n"
        "  - {path: a.jsonl, type: sharegpt, conversation: chatml}\n"
        "  - {path: a.jsonl, type: jeopardy}\n"
        "  - {path: a.jsonl, type: chat_template, train_on_eos: none}\n"
        "  - {path: a.jsonl, type: completion, split: 'train[:10%]', revision: main, feild: x}\n"
        "  - {type: completion}\n"
    )
    imported = carry(tmp_path, text)
    assert "which Axolotl has removed" in entry(imported, "datasets[1]")[1].reason
    assert "data.columns cannot express" in entry(imported, "datasets[4]")[1].reason
    assert "train_on_eos" in entry(imported, "datasets[3]")[1].reason
    assert entry(imported, "datasets[4].revision")[0] == "unsupported"
    assert entry(imported, "datasets[4].split")[0] == "changed"
    assert [(unknown.key, unknown.guess) for unknown in imported.unknown] == [
        ("datasets[4].feild", "datasets[4].field")
    ]
    assert entry(imported, "datasets[5]")[1].reason == "It has no path."
    assert len(setting(imported, "data.train")) == 4
    assert json.dumps(imported.to_dict())


def test_no_data_leaves_a_place_for_it(tmp_path: Path) -> None:
    imported = carry(tmp_path, BASE)
    assert setting(imported, "data.train") == "train.jsonl"
    assert "put yours" in comment(imported, "data.train")
    loaded(tmp_path, imported)


def test_templates_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "own.jinja", "{{ messages }}")
    rows(tmp_path / "a.jsonl")
    one = "datasets: [{path: a.jsonl, type: chat_template, chat_template: llama3}]\n"
    cases: tuple[tuple[str, str, Any], ...] = (
        ("chat_template: jinja\nchat_template_jinja: own.jinja\n", "template.file", "own.jinja"),
        ("chat_template_jinja: own.jinja\n", "template.file", "own.jinja"),
        ("chat_template_jinja: '{{ messages }}'\n", "template.file", None),
        ("chat_template: llama3\nchat_template_jinja: own.jinja\n", "template.name", "llama3"),
        (one, "template.name", "llama3"),
        (f"{one}chat_template: chatml\n", "template.name", "llama3"),
        (one.replace("}]", "}, {path: a.jsonl, type: chat_template}]"), "template.name", None),
    )
    for text, name, value in cases:
        imported = carry(tmp_path, BASE + text)
        assert setting(imported, name) == value, text
        assert_all_accounted(imported, keys_of(BASE + text, AXOLOTL.sections))
        loaded(tmp_path, imported)

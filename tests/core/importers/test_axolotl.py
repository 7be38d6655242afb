"""Axolotl's YAML carried over: its rules, its traps, its datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.data.formats.detect import SAMPLE
from core.data.registries.resolve import training_sources
from core.importers.axolotl import AXOLOTL
from tests.core.data.sample_files import json_lines, write
from tests.core.importers.helpers import assert_all_accounted, carry, entry, keys_of, loaded, rows, setting

BASE = "base_model: a/b\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nsequence_len: 64\nlearning_rate: 1e-4\n"


# Evaluation.


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

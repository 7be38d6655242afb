"""Axolotl's YAML carried over: its rules, its traps, its datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.data.formats.detect import SAMPLE
from core.data.registries.resolve import training_sources
from tests.cases import cases, tables
from tests.core.data.sample_files import json_lines, write
from tests.core.importers.helpers import assert_all_accounted, carry, entry, loaded, rows, setting

TABLES = tables(__file__)
BASE = "base_model: a/b\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nsequence_len: 64\nlearning_rate: 1e-4\n"


def learned(directory: Path, text: str) -> list[list[list[str]]]:
    """Turns of each row of an imported file's data; a text is a turn of its own."""
    config = loaded(directory, carry(directory, f"{BASE}{text}"))
    found = []
    for sources, _ in training_sources(config.data):
        for source in sources:
            detection = source.detect(list(source.rows())[:SAMPLE])
            for row in source.rows():
                example = detection.example(row)
                turns = [[message.role, str(message.content)] for message in example.messages]
                found.append(turns or [["text", example.text or str(list(example.ids or []))]])
    return found


@cases(("given", "turns"), TABLES["turns"])
def test_each_type_is_read_as_it_says(tmp_path: Path, given: dict[str, Any], turns: list[list[list[str]]]) -> None:
    for name, row in TABLES["rows"].items():
        write(tmp_path / name, json_lines([row]))
    assert learned(tmp_path, yaml.safe_dump(given)) == turns


def test_entries_that_are_not_done_are_reported_one_by_one(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl")
    imported = carry(tmp_path, f"{BASE}{yaml.safe_dump(TABLES['entries_that_are_not_done'])}")
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


@cases(("given", "name", "value"), TABLES["templates"])
def test_templates_of_their_own(tmp_path: Path, given: dict[str, Any], name: str, value: str | None) -> None:
    write(tmp_path / "own.jinja", "{{ messages }}")
    rows(tmp_path / "a.jsonl")
    imported = carry(tmp_path, BASE + yaml.safe_dump(given))
    assert setting(imported, name) == value
    assert_all_accounted(imported, yaml.safe_load(BASE) | given)
    loaded(tmp_path, imported)


@cases(("given", "train"), TABLES["data_files"])
def test_files_of_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], train: str | list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = yaml.safe_dump({"datasets": [{**given, "type": "alpaca"}]}).replace("HERE", str(tmp_path))
    assert setting(carry(tmp_path, BASE + text), "data.train") == train

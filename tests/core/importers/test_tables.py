"""Tables of the tools: every key is carried, changed or listed with a reason, whatever its value."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config.schema import find_option
from core.errors import UserError
from core.importers.convert import FORMS, Imported, import_config
from core.importers.tool import REASONS, Choice, Copy, Tool, Unsupported, table
from core.importers.translation import Entry, is_one_of
from core.yaml.file import read_document
from tests.cases import cases, tables
from tests.core.data.sample_files import write
from tests.core.importers.helpers import (
    assert_all_accounted,
    carry,
    comment,
    entries,
    entry,
    loaded,
    questions,
    setting,
)

TABLES = tables(__file__)

PAGE = Path(__file__).parents[3] / "docs" / "import.md"
EVERY = cases("tool", FORMS.values(), ids=lambda tool: tool.kind)
#: Files of each tool with the settings that are added to them, and the options that they become.
SETTINGS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("settings.yaml").read_text(encoding="utf-8")
)
#: Values of every type; a key accepts at least one.
VALUES: tuple[Any, ...] = (True, 1, "odd", 0.5, "none", "steps", "drop", [0.5], ["x"], {"x": 1}, [{"path": "a"}])


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files are read without the sandbox, which other tests go through."""
    monkeypatch.setattr("core.importers.convert.read_yaml", read_document)


def keys_with(tool: Tool, kind: type) -> list[str]:
    return [key for key, rule in tool.table.items() if isinstance(rule, kind)]


def imported_with(directory: Path, tool: Tool, values: dict[str, Any]) -> dict[str, list[Entry]]:
    """Import a file with these keys besides the least; the entries of each key.

    Raises:
        UserError: If it is refused.
    """
    (directory / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (directory / "dataset_info.json").write_text('{"mine": {"file_name": "rows.jsonl"}}')
    whole = copy.deepcopy(TABLES["least"][tool.kind])
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (whole.setdefault(section, {}) if section else whole)[name] = value
    path = directory / "config.yaml"
    path.write_text(json.dumps(whole))  # which is YAML too, and written sooner
    found: dict[str, list[Entry]] = {}
    imported = import_config(path, tool.kind, directory)
    assert not imported.unknown
    for each in entries(imported):
        assert each in imported.carried or each.reason.endswith((".", "?")), each
        found.setdefault(each.key, []).append(each)
    return found


def prepare(directory: Path, section: str) -> dict[str, Any]:
    """Write the data of a section; the section."""
    values = SETTINGS[section]
    for name, count in values.get("rows", {}).items():
        write(directory / name, questions(count))
    if "registry" in values:
        write(directory / "data" / "dataset_info.json", json.dumps(values["registry"]))
    return values


def settled(directory: Path, section: str, given: dict[str, Any]) -> Imported:
    """Import the file of a section with these settings; the result loads, and every key has one entry."""
    values = prepare(directory, section)
    whole = values["base"] | given
    imported = carry(directory, yaml.safe_dump(whole), values["tool"])
    assert not imported.unknown
    assert_all_accounted(imported, whole)
    loaded(directory, imported)
    return imported


@cases(("section", "case"), [(name, case) for name, section in SETTINGS.items() for case in section["cases"]])
def test_settings_become_options(tmp_path: Path, section: str, case: dict[str, Any]) -> None:
    imported = settled(tmp_path, section, case["give"])
    for name, value in case.get("want", {}).items():
        assert setting(imported, name) == value, name
    for key, (where, option) in case.get("keys", {}).items():
        found = entry(imported, key)
        assert (found[0], found[1].to) == (where, option), key
    for key, words in case.get("reasons", {}).items():
        assert words in entry(imported, key)[1].reason
    for name, words in case.get("comments", {}).items():
        assert words in comment(imported, name)
        assert bool(words) == bool(comment(imported, name)), name


@cases(("tool", "given"), TABLES["rows_that_are_not_packed"])
def test_rows_that_are_not_packed(tmp_path: Path, tool: str, given: dict[str, Any]) -> None:
    """The file itself would refuse packing with noise, and with preferences."""
    imported = settled(tmp_path, f"{tool} with rows held out", given)
    assert entry(imported, next(iter(given)))[1].to is None
    assert setting(imported, "train.packing") is None
    assert not any("packing" in remark for remark in imported.remarks)


@cases(("tool", "key"), [("axolotl", "sample_packing"), ("llama-factory", "neat_packing")])
def test_packed_rows_make_a_smaller_batch(tmp_path: Path, tool: str, key: str) -> None:
    section = f"{tool} with rows held out"
    packed = settled(tmp_path, section, {key: True})
    assert "Packed rows held several each" in comment(packed, "train.batch_size")
    unpacked = settled(tmp_path, section, {key: False, "gradient_accumulation_steps": 2})
    assert "Packed" not in comment(unpacked, "train.batch_size")


@EVERY
def test_a_carried_key_has_one_entry(tmp_path: Path, tool: Tool) -> None:
    for key in set(tool.table) - set(keys_with(tool, Unsupported)):
        refusals = []
        for value in VALUES:
            try:
                found = imported_with(tmp_path, tool, {key: value})
            except UserError as error:
                refusals.append(str(error))
                continue
            assert len(found[key]) == 1, (key, value)
            break
        assert len(refusals) < len(VALUES), (key, refusals)
        assert all("config.yaml" in refusal for refusal in refusals), refusals


@EVERY
@cases("value", [True, 1, "x", {"x": [1]}, False, None])
def test_an_unsupported_key_has_one_entry_with_a_reason(tmp_path: Path, tool: Tool, value: Any) -> None:
    # data.special_tokens is read from split_special_tokens, which must be a boolean.
    keys = [key for key in keys_with(tool, Unsupported) if key != "split_special_tokens"]
    found = imported_with(tmp_path, tool, dict.fromkeys(keys, value))
    for key in keys:
        (only,) = found[key]
        rule = tool.table[key]
        assert isinstance(rule, Unsupported)
        assert (only.reason == rule.reason) == (value is not None and not is_one_of(value, rule.off)), only


def test_no_key_is_lost() -> None:
    """A key that leaves its table becomes an error for the user."""
    assert {kind: len(tool.table) for kind, tool in FORMS.items()} == {
        "axolotl": 525,
        "llama-factory": 512,
        "llama-factory-v1": 91,
        "unsloth": 51,
    }
    with pytest.raises(ValueError, match="two rules for a"):
        table({"a": 1, "b": 2}, {"a": 1})


def test_every_reason_is_used() -> None:
    used = {rule.reason for tool in FORMS.values() for rule in tool.table.values() if isinstance(rule, Unsupported)}
    assert used == set(REASONS.values())
    assert all(reason.endswith(".") for reason in used)


@EVERY
def test_the_options_of_a_table_exist(tool: Tool) -> None:
    for key, rule in tool.table.items():
        if not isinstance(rule, (Copy, Choice)):
            continue
        option = find_option(rule.option)
        assert option is not None, key
        if isinstance(rule, Choice):
            ours = [*rule.same.values(), *(value for value, _ in rule.near.values()), rule.otherwise, rule.absent]
            assert {value for value in ours if value is not None} <= set(option.choices), key


@EVERY
def test_the_page_has_every_carried_key(tool: Tool) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Carried keys\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in rows[0]].index(tool.title)
    listed = " ".join(row[column] for row in rows) + section.partition("Also accepted: ")[2]
    missing = [
        key
        for key in set(tool.table) - set(keys_with(tool, Unsupported))
        if not re.search(f"`{re.escape(key)}[`:]", listed)
    ]
    assert missing == []

"""Unsloth's scripts and notebooks: literal arguments become options, the rest is reported, and nothing is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.importers.convert import Imported, import_config
from tests.cases import cases, tables
from tests.core.data.sample_files import write
from tests.core.importers.helpers import entry, loaded, rows, setting

TABLES = tables(__file__)


def script(directory: Path, more: str = "", **replaced: str) -> Imported:
    """Import the sample with some of its words replaced, and lines at its end."""
    text: str = TABLES["script"]
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    rows(directory / "rows.jsonl")
    return import_config(write(directory / "train.py", f"{text}\n{more}\n"), None, directory)


def notebook(directory: Path, *cells: str, output: str = "") -> Path:
    """A notebook with cells of code, of which the first has an output."""
    outputs = [[{"output_type": "stream", "text": output}], *([] for _ in cells[1:])]
    made = [
        {"cell_type": "code", "source": code.splitlines(keepends=True), "outputs": out}
        for code, out in zip(cells, outputs, strict=True)
    ]
    return write(directory / "n.ipynb", json.dumps({"cells": [{"cell_type": "markdown", "source": "# x"}, *made]}))


def test_a_script_becomes_a_configuration(tmp_path: Path) -> None:
    imported = script(tmp_path)
    assert {name: setting(imported, name) for name in TABLES["options"]} == TABLES["options"]
    assert not imported.unknown
    assert entry(imported, "bf16")[1].reason.startswith("Computed in the code")
    assert entry(imported, "bf16")[1].value == "is_bfloat16_supported()"
    assert entry(imported, "logging_steps")[0] == "unsupported"
    loaded(tmp_path, imported)


@cases(("line", "options"), TABLES["lines"])
def test_lines_of_scripts(tmp_path: Path, line: list[str], options: dict[str, Any]) -> None:
    imported = script(tmp_path, **dict([line]))
    assert {name: setting(imported, name) for name in options} == options
    loaded(tmp_path, imported)


def test_later_calls_are_reported_and_dead_code_is_not(tmp_path: Path) -> None:
    again = 'model, _ = FastLanguageModel.from_pretrained("other/model")'
    imported = script(tmp_path, f"if False:\n    {again}\n{again}")
    (found,) = [said for said in imported.unsupported if said.value == "from_pretrained"]
    assert "the first one counts" in found.reason
    assert setting(imported, "model.base") == "a/model"


def test_a_notebook_with_large_outputs_and_commands_of_its_own(tmp_path: Path) -> None:
    path = notebook(tmp_path, *TABLES["cells"], output="x" * 300_000)
    imported = import_config(path, None, tmp_path)
    assert setting(imported, "model.base") == "a/model"
    assert setting(imported, "method.rank") == 32
    assert entry(imported, "cell 5")[1].reason == "The cell is not Python, and is not read."
    loaded(tmp_path, imported)


@cases(("name", "text", "part"), TABLES["refused"])
def test_what_is_no_program_of_unsloth_is_one_sentence(tmp_path: Path, name: str, text: str, part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        import_config(write(tmp_path / name, text))
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_code_is_limited_and_belongs_to_unsloth(tmp_path: Path) -> None:
    path = write(tmp_path / "x.py", TABLES["script"])
    with pytest.raises(UserError, match="is Python, and Axolotl is set by YAML"):
        import_config(path, "axolotl")
    write(path, "x = 1\n" * 30_000)
    with pytest.raises(UserError, match="larger than 128 KiB"):
        import_config(path)
    with pytest.raises(UserError, match="more than 128 KB of code"):
        import_config(notebook(tmp_path, "x = 1\n" * 30_000))


def test_names_of_names_are_followed_and_multiplied_lists_refused(tmp_path: Path) -> None:
    names = "".join(f"d{number} = d{number - 1}\n" for number in range(1, 2000))
    imported = script(tmp_path, **{"trainer = SFT": f"d0 = dataset\n{names}dataset = d1999\ntrainer = SFT"})
    assert setting(imported, "data.train") == "rows.jsonl"
    lists = "".join(f"t{number} = [t{number - 1}, t{number - 1}]\n" for number in range(1, 60))
    imported = script(tmp_path, **{"model = Fast": f't0 = ["q"]\n{lists}model = Fast', '["q_proj", "v_proj"]': "t59"})
    assert entry(imported, "target_modules")[1].reason.startswith("Computed in the code")

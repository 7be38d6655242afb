"""``localtune-tui import`` as people and scripts call it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from core.commands.common import write_file
from core.commands.import_ import KINDS
from core.config.document import load_config
from core.errors import UserError
from core.importers.convert import TOOLS
from tests.cases import cases, tables
from tests.core.commands.conftest import Call
from tests.core.data.sample_files import json_lines, pairs, write
from tests.core.importers.test_tables import SETTINGS, prepare

TABLES = tables(__file__)

ROOT = Path(__file__).parents[3]
SAMPLES = {tool: yaml.safe_dump(SETTINGS[f"{tool} as usual"]["base"], sort_keys=False) for tool in KINDS}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with data for each of the samples."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, "llama-factory as usual")
    write(tmp_path / "rows.jsonl", json_lines(pairs(20)))
    for kind, text in SAMPLES.items():
        write(tmp_path / f"{kind}.yml", text)
    return tmp_path


@cases("kind", SAMPLES)
def test_the_result_is_read_by_the_other_commands(call: Call, place: Path, kind: str) -> None:
    ended = call.ok("import", f"{kind}.yml", "--out", f"{kind}.toml")
    assert ended.out == ""
    assert "carried:" in ended.err
    assert "unsupported:" in ended.err
    load_config(place / f"{kind}.toml")
    looked = call("data", "--config", f"{kind}.toml", "--json")
    assert looked.code == 0, looked.err
    result = looked.json
    assert result["rows"] == (2 if kind == "llama-factory" else 20)
    assert result["used"] == result["rows"] - result["dropped"].pop("held_out", 0)
    assert result["dropped"] == {}


def test_without_out_the_configuration_goes_to_standard_output(call: Call, place: Path) -> None:
    ended = call.ok("import", "axolotl.yml")
    assert ended.out.startswith("# Imported from axolotl.yml, a configuration of Axolotl.\n")
    dashed = call("import", "axolotl.yml", "--out", "-")
    assert dashed.out == ended.out
    assert not (place / "-").exists()
    write(place / "elsewhere" / "ours.toml", ended.out)
    # Its paths hold wherever it lies.
    assert load_config(place / "elsewhere" / "ours.toml").data.train == str(place / "rows.jsonl")


def test_the_json_has_what_scripts_need(call: Call, place: Path) -> None:
    ended = call.ok("import", "axolotl.yml", "--json")
    result = ended.json
    assert result["kind"] == "axolotl"
    assert result["reason"]
    assert "[method]" in result["toml"]
    for name in ("carried", "changed", "unsupported"):
        assert result[name]
        assert all(set(said) == {"key", "value", "to", "reason"} for said in result[name])
    assert {"key": "lora_r", "value": 32, "to": "method.rank", "reason": ""} in result["carried"]


def test_an_unknown_key_is_an_error_and_the_rest_is_carried_over(call: Call, place: Path) -> None:
    write(place / "typo.yml", "base_model: x\nsequence_len: 8\nlora_rr: 4\n")
    ended = call("import", "typo.yml", "--json")
    assert ended.code == 1
    assert "typo.yml, line 3: Axolotl has no key lora_rr; it was left out. Did you mean lora_r?" in ended.err
    assert any("Did you mean lora_r?" in said["reason"] for said in ended.json["unsupported"])


def test_nothing_is_written_over(call: Call, place: Path) -> None:
    out = write(place / "ours.toml", "mine\n")
    call.refused("--force", "import", "axolotl.yml", "--out", "ours.toml", lines=call.ANY)
    assert out.read_text() == "mine\n"
    call.ok("import", "axolotl.yml", "--out", "ours.toml", "--force")
    assert out.read_text().startswith("# Imported")
    assert call("import", "axolotl.yml", "--out", "axolotl.yml", "--force").code == 1
    assert (place / "axolotl.yml").read_text() == SAMPLES["axolotl"]
    for target, part in ((".", "is a directory"), ("nowhere/x.toml", "cannot be written")):
        call.refused(part, "import", "axolotl.yml", "--out", target)
    assert not [name for name in os.listdir(place) if name.startswith(".")]


def test_a_file_made_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    out = write(tmp_path / "ours.toml", "mine\n")
    with pytest.raises(UserError, match="exists already"):
        write_file(out, "new\n", force=False)
    assert out.read_text() == "mine\n"
    assert os.listdir(tmp_path) == ["ours.toml"]


@cases(("text", "part"), TABLES["what_cannot_be_carried_over_is_one_sentence"])
def test_what_cannot_be_carried_over_is_one_sentence(call: Call, place: Path, text: str, part: str) -> None:
    write(place / "x.yml", text)
    call.refused(part, "import", "x.yml", "--out", "o.toml")
    assert not (place / "o.toml").exists()


def test_whose_it_is_may_be_said(call: Call, place: Path) -> None:
    assert tuple(TOOLS) == KINDS
    write(place / "x.yml", "learning_rate: 1e-4\n")
    ended = call.ok("import", "x.yml", "--from", "llama-factory")
    assert "learning_rate = 0.0001" in ended.out
    assert call("import", "x.yml", "--from", "llama-factory", "--json").json["reason"] == "Given by --from."
    assert call("import", "x.yml", "--from", "nobody").code == 2


def test_people_get_no_control_characters_and_no_secrets(call: Call, place: Path) -> None:
    token = "hf_" + "Zz9" * 12
    write(
        place / "x.yml",
        f'base_model: "a\\e]52;c;x\\ab\\x9b2J"\nsequence_len: 8\nhub_token: {token}\n"k\\e[2J": "\\x9b"\n'
        'datasets: [{path: "d\\e[2J.jsonl", type: "\\e[31m"}]\n',
    )
    for words in ([], ["--json"]):
        ended = call("import", "x.yml", *words)
        assert ended.code == 1  # for the key that is none
        everything = ended.out + ended.err
        assert token not in everything
        assert not any(character in everything for character in "\x1b\x07\x9b")

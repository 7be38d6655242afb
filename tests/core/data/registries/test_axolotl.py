"""Axolotl dataset types: formats, chats that plain columns describe, and refused types with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.data.files.rows import Row
from core.data.formats.mapping import ColumnMap, TextFormat
from core.data.registries.axolotl import REFUSED
from core.data.registries.axolotl_chat import plain_columns
from core.data.registries.resolve import single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from tests.cases import cases
from tests.core.data.conversations import spoken
from tests.core.data.registries.test_resolve import examples
from tests.core.data.sample_files import json_lines, write

CASES = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))


def axolotl(directory: Path, entry: dict[str, Any], *rows: dict[str, Any]) -> DataSource:
    """An entry of an Axolotl configuration beside ``rows.jsonl``."""
    write(directory / "rows.jsonl", json_lines(rows or [{}]))
    config = {"base_model": "x", "datasets": [{"path": "rows.jsonl", **entry}]}
    return single_source(f"{write(directory / 'config.yml', yaml.safe_dump(config))}#1")


def test_a_format_alone_needs_the_columns_of_axolotl(tmp_path: Path) -> None:
    missing = axolotl(tmp_path, {"type": {"format": "Q: {instruction}"}}, {"instruction": "x"})
    with pytest.raises(UserError, match="no column 'output'"):
        examples(missing)


@cases("text", ["{", "{x", "{instruction.__class__}", "{0}", "{}", "{instruction!r}", "{instruction:>9}"])
def test_formats_that_are_more_than_places_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"type\.format") as caught:
        axolotl(tmp_path, {"type": {"format": text}})
    assert "ouble" in caught.value.hint


@given(st.text(alphabet="ab{}.!:[]0", max_size=20), st.text(max_size=5))
def test_any_format_is_filled_or_refused(text: str, value: str) -> None:
    try:
        found = TextFormat.parse(text, ["a"], "It")
    except UserError:
        return
    assert found.fill({"a": value}) == text.format(a=value)


TALK = [("system", "s"), ("human", "q"), ("bot", "a"), ("human", "r"), ("bot", "b")]
CHAT = {
    "type": "chat_template",
    "field_messages": "talk",
    "message_property_mappings": {"role": "from", "content": "value"},
    "roles": {"user": ["human"], "assistant": ["gpt", "bot"]},
}


@cases(
    "keys",
    [
        {},
        {"roles_to_train": ["assistant"]},
        {"roles": {"user": ["human", "asker"], "assistant": ["gpt", "bot"], "tool": ["ipython"]}},
        {"field_system": "rule", "field_tools": "can"},
    ],
)
@cases("first", [0, 1])
def test_columns_that_say_the_same_as_a_chat(tmp_path: Path, keys: dict[str, Any], first: int) -> None:
    talk = [{"from": speaker, "value": text} for speaker, text in TALK[first:]]
    row = {"talk": talk, "rule": "column", "can": [{"type": "function", "function": {"name": "look"}}]}
    entry = {**CHAT, **keys}
    columns = plain_columns(entry, "here")
    assert columns is not None
    read_row = Row(0, 1, row)
    said = DataSource("here", Path(), "auto", ColumnMap(dict(columns.columns))).detect([read_row])
    (wanted,), found = examples(axolotl(tmp_path, entry, row)), said.example(read_row)
    assert spoken(found) == spoken(wanted)
    assert found.tools == wanted.tools


def test_inverted_speakers_are_reported_too() -> None:
    columns = plain_columns({"type": "chat_template", "roles": {"user": ["gpt"], "assistant": ["human"]}}, "here")
    assert columns is not None
    assert (columns.columns["user_role"], columns.columns["assistant_role"]) == ("gpt", "human")


@cases("keys", CASES["no columns"])
def test_what_columns_cannot_say_of_a_chat(keys: dict[str, Any]) -> None:
    assert plain_columns({"type": "chat_template", **keys}, "here") is None


@cases("kind", sorted(REFUSED))
def test_types_that_are_refused_say_why_and_what_else(tmp_path: Path, kind: str) -> None:
    name = f"{kind}.default" if kind in ("chat_template", "user_defined") else kind
    with pytest.raises(UserError, match=r"which (writes sentences|is for reward|holds preference)") as caught:
        axolotl(tmp_path, {"type": name})
    assert caught.value.hint

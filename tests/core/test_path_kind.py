"""Kinds of paths, and the error for a path of the wrong kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.path_kind import _CONFIG_LINE, path_kind, refuse_kind
from tests.cases import cases, tables

TABLES = tables(__file__)
FILES = {name: (text.encode("latin-1"), kind) for name, (text, kind) in TABLES["files"].items()}


@cases(("name", "content", "kind"), [(name, *rest) for name, rest in FILES.items()])
def test_files_are_recognized_by_name_or_content(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert path_kind(tmp_path / name) == kind


def test_directories_are_runs_models_or_of_data(tmp_path: Path) -> None:
    for name in ("run", "model", "rows"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "run.toml").write_text("")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "rows" / "config.json").write_text('{"splits": []}')
    assert [path_kind(tmp_path / name) for name in ("run", "model", "rows")] == ["run", "model", "directory"]


def test_nothing_blocks_and_nothing_raises(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert path_kind(tmp_path / "pipe.csv") == "other"
    for name in ("none", "a\0b", "x" * 5000):
        assert path_kind(tmp_path / name) == "missing"


@cases(("name", "wanted", "said"), TABLES["sentences"])
def test_the_sentence_names_the_command(
    tmp_path: Path, name: str, wanted: Literal["data", "config"], said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name][0])
    with pytest.raises(UserError) as raised:
        refuse_kind(path, wanted)
    assert said.format(path=path) in str(raised.value)


@cases(
    ("name", "wanted"),
    [("faq.csv", "data"), ("my.toml", "config"), ("axolotl.yml", "data"), ("notes.md", "config"), ("none", "data")],
)
def test_what_may_be_meant_is_not_refused(tmp_path: Path, name: str, wanted: Literal["data", "config"]) -> None:
    if name in FILES:
        (tmp_path / name).write_bytes(FILES[name][0])
    refuse_kind(tmp_path / name, wanted)


def test_every_section_of_a_configuration_is_known() -> None:
    for section in Config.model_fields:
        assert _CONFIG_LINE.fullmatch(f"[{section}]".encode()), section
        assert _CONFIG_LINE.fullmatch(f"{section}.option = 1".encode()), section
    assert not _CONFIG_LINE.fullmatch(b"[other]")

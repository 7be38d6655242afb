"""The list of configurations that were open."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from core.config.files import KEPT, recent_configs, recent_path, remember_config
from core.paths import make_private_dir
from tests.cases import cases


def test_the_last_one_is_first_and_each_is_there_once(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.toml", "b.toml", "ü \n.toml")]
    for path in paths:
        path.touch()
        remember_config(path)
    remember_config(paths[0])
    assert recent_configs() == [paths[0], paths[2], paths[1]]
    paths[2].unlink()
    assert recent_configs() == [paths[0], paths[1]]
    assert recent_path().stat().st_mode & 0o077 == 0


def test_it_does_not_grow_without_end(tmp_path: Path) -> None:
    for number in range(KEPT + 5):
        (tmp_path / f"{number}.toml").touch()
        remember_config(tmp_path / f"{number}.toml")
    assert len(recent_configs()) == KEPT
    assert recent_configs()[0].name == f"{KEPT + 4}.toml"


@cases("text", ["{", "3", '[1, null, "x", "/\\u0000"]', "[" * 100_000, "\xff", "[]"])
def test_a_broken_list_is_an_empty_one(text: str, tmp_path: Path) -> None:
    make_private_dir(recent_path().parent)
    recent_path().write_text(text, encoding="latin-1")
    assert recent_configs() == []
    (tmp_path / "a.toml").touch()
    remember_config(tmp_path / "a.toml")
    assert recent_configs() == [tmp_path / "a.toml"]


def test_where_it_cannot_be_written_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "file" / "home"))
    remember_config(tmp_path / "file")
    assert recent_configs() == []


@cases("name", [f"/{'x' * 5000}", "/\ud800.toml", "/dev/null", "/"])
def test_a_name_that_no_configuration_can_have_is_left_out(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").touch()
    make_private_dir(recent_path().parent)
    recent_path().write_text(json.dumps([name, str(tmp_path / "a.toml")]))
    assert recent_configs() == [tmp_path / "a.toml"]


def test_a_list_that_is_no_file_is_an_empty_one() -> None:
    recent_path().parent.mkdir(parents=True)
    # Reading a named pipe would wait for ever.
    os.mkfifo(recent_path())
    assert recent_configs() == []
    recent_path().unlink()
    recent_path().symlink_to("/dev/zero")
    assert recent_configs() == []

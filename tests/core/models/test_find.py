"""Base model lookup, by every kind of name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from core import paths
from core.hub_uri import parse_entry
from core.models.find import (
    STARTER_NAME,
    close_name,
    find_in_hub_cache,
    find_model,
    gguf_identity,
    is_model_here,
    missing_model,
)
from tests.cases import cases


def test_the_hub_cache_is_found_where_the_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert find_in_hub_cache(parse_entry("hf://org/model")) is None
    repository = tmp_path / "hub" / "models--org--model"
    snapshot = repository / "snapshots" / "abc"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc\n")
    assert find_in_hub_cache(parse_entry("hf://org/model")) is None
    snapshot.mkdir(parents=True)
    assert find_in_hub_cache(parse_entry("hf://org/model")) == snapshot
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert find_in_hub_cache(parse_entry("hf://org/model")) is None


def prepared(name: str) -> Path:
    directory = paths.make_private_dir(paths.models_dir() / name)
    (directory / "config.json").write_text("{}")
    return directory


def test_a_model_is_found_by_directory_name_and_hub_id(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert find_model("own", tmp_path) == tmp_path / "own"
    assert find_model(str(tmp_path / "own")) == tmp_path / "own"
    assert find_model("own") is None
    assert find_model("mine") is None
    assert prepared("mine") == find_model("mine")
    fetched = prepared("org--model")
    assert find_model("org/model") == find_model("hf://org/model") == fetched
    assert find_model("hf://org/model@v1") is None
    assert find_model("hf://datasets/org/model") is None
    # A directory of that name takes precedence over fetched models.
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert find_model("org/model", tmp_path) == tmp_path / "org" / "model"


def test_a_gguf_is_found_once_it_has_been_converted(tmp_path: Path) -> None:
    gguf = tmp_path / "My model.gguf"
    gguf.write_bytes(b"GGUF")
    assert find_model(str(gguf)) is None
    assert "not converted yet" in missing_model(str(gguf)).message
    directory = prepared("My-model-0123")
    record = {"identity": gguf_identity(gguf), "files": {"config.json": 2}}
    (directory / "localtune.json").write_text(json.dumps(record))
    assert find_model(str(gguf)) == find_model("My model.gguf", tmp_path) == directory
    (directory / "config.json").write_text("{ }")
    assert find_model(str(gguf)) is None
    (directory / "config.json").write_text("{}")
    os.utime(gguf, (1, 1))
    assert find_model(str(gguf)) is None


@cases("name", ["~0", "~nobody-by-this-name/x", "~a\x00b/c", "a\x00b", "hf://", "hf://x", "/", "a/b/c"])
def test_names_that_are_no_names_find_nothing_and_raise_nothing(name: str) -> None:
    found = find_model(name)
    assert found is None or name == "/"
    error = missing_model(name)
    assert error.hint
    assert "\x00" not in error.message


def test_a_revision_is_found_in_the_hub_cache_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository, old, new = tmp_path / "models--org--model", "a" * 40, "b" * 40
    for commit in (old, new):
        (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs" / "refs" / "pr").mkdir(parents=True)
    for name, commit in (("main", new), ("v1", old), ("refs/pr/1", old), ("gone", "c" * 40), ("bad", "../../x")):
        (repository / "refs" / name).write_text(commit)
    for revision, commit in (("", new), ("@v1", old), ("@main", new), (f"@{old}", old), ("@refs/pr/1", old)):
        assert find_model(f"hf://org/model{revision}") == repository / "snapshots" / commit
    for revision in ("v2", "gone", "bad", "c" * 40, "../main", "main/config.json"):
        assert find_model(f"hf://org/model@{revision}") is None
    assert "fetch hf://org/model@v2'" in missing_model("hf://org/model@v2").hint


@cases(
    ("name", "meant"),
    [
        ("smolxyz", STARTER_NAME),
        ("smollm2-135m", STARTER_NAME),
        ("smollm2-135-instruct", STARTER_NAME),
        ("my-modle", "my-model"),
        ("MY-MODEL", "my-model"),
        ("./my-modle", "my-model"),
        ("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instrct", "Qwen/Qwen2.5-7B-Instruct"),
        # Another size is another model.
        ("Qwen/Qwen2.5-1B-Instruct", None),
        ("mistralai/Mistral-7B-v0.3", None),
        ("llama", None),
        ("x", None),
    ],
)
def test_a_mistyped_name_is_recognized(name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(paths.home() / "hub"))
    prepared("my-model")
    (paths.home() / "hub" / "models--Qwen--Qwen2.5-7B-Instruct").mkdir(parents=True, exist_ok=True)
    assert close_name(name) == meant
    hint = missing_model(name).hint
    assert (f"Did you mean {meant}?" in hint) == (meant is not None)
    assert "localtune-tui fetch hf://" in hint


def test_a_model_is_here_if_a_run_can_take_it(tmp_path: Path) -> None:
    assert is_model_here(STARTER_NAME)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "own").mkdir()
    prepared("mine")
    for name in ("a.gguf", "own", "mine", str(tmp_path / "own")):
        assert is_model_here(name, tmp_path)
    for name in ("b.gguf", "other", "org/model", "hf://org/model", "", "a\x00b"):
        assert is_model_here(name, tmp_path) == (name == "")

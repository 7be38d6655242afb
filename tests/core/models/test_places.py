"""Places of base models: each kind, exclusions, and entries that must not be followed or waited for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from core.hub_uri import HubEntry, parse_entry
from core.models import places
from core.models.find import (
    CHECKED,
    STARTER_NAME,
    close_name,
    find_in_hub_cache,
    find_model,
    gguf_identity,
    is_model_here,
    locate_model,
    missing_model,
)
from core.models.places import FoundModel, UnreadPlace, fetchable, find_models, typed_model
from tests.cases import cases, tables
from tests.unprivileged import unprivileged

DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def _no_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "no-ollama"))


def model_in(directory: Path, *, weights: bool = True) -> Path:
    """A directory with the files of a model, as far as their names go."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    if weights:
        (directory / "model.safetensors").write_bytes(b"")
    return directory


def cached(repository: str, revisions: dict[str, str]) -> Path:
    """A model in the Hugging Face cache, a snapshot for each commit; the refs name commits."""
    place = Path.home() / ".cache/huggingface/hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    for ref, commit in revisions.items():
        (place / "refs" / ref).write_text(commit)
        if not (place / "snapshots" / commit).exists():
            model_in(place / "snapshots" / commit)
    return place


def found(*directories: Path) -> dict[str, FoundModel]:
    """The models found, by their value of ``model.base``."""
    return {item.base: item for item in find_models(directories) if isinstance(item, FoundModel)}


def unread(*directories: Path) -> list[str]:
    return [item.sentence for item in find_models(directories) if isinstance(item, UnreadPlace)]


def test_an_empty_machine_offers_the_starter_model() -> None:
    (only,) = find_models([])
    assert isinstance(only, FoundModel)
    assert (only.base, only.source) == (STARTER_NAME, "starter")
    model_in(paths.models_dir() / STARTER_NAME)
    (only,) = find_models([])
    assert isinstance(only, FoundModel)
    assert (only.base, only.source, only.place) == (STARTER_NAME, "prepared", "prepared")


def test_what_was_fetched_has_the_name_that_a_configuration_gives_it() -> None:
    models = paths.models_dir()
    for name, record in (
        ("org--tiny", {"repository": "org/tiny", "commit": "a" * 40, "revisions": ["main"]}),
        ("org--tiny@bbbbbbbbbbbb", {"repository": "org/tiny", "commit": "b" * 40, "revisions": ["v1"]}),
        ("org--tiny@cccccccccccc", {"repository": "org/tiny", "commit": "c" * 40}),
        ("mine", {}),
    ):
        directory = model_in(models / name)
        (directory / "localtune.json").write_text(json.dumps({**record, "files": {"config.json": 2}}))
    (models / ".org--other.fetched").mkdir()
    names = found()
    for base in ("org/tiny", "hf://org/tiny@v1", f"hf://org/tiny@{'c' * 40}", "mine"):
        assert find_model(base) == names[base].path
    assert set(names) == {STARTER_NAME, "org/tiny", "hf://org/tiny@v1", f"hf://org/tiny@{'c' * 40}", "mine"}


def test_the_hugging_face_cache_is_listed_by_what_finds_it_again() -> None:
    cached("org/main", {"main": "a" * 40, "v1": "b" * 40})
    cached("org/tagged", {"v2": "c" * 40})
    place = cached("org/bare", {})
    model_in(place / "snapshots" / ("d" * 40))
    # Only a tokenizer was needed of this one, and nothing at all of that one.
    tokenizer = cached("org/tokenizer", {"main": "e" * 40}) / "snapshots" / ("e" * 40)
    (tokenizer / "config.json").unlink()
    cached("org/nothing", {})
    ggufs = cached("org/some-GGUF", {"main": "a" * 40}) / "snapshots" / ("a" * 40)
    (ggufs / "config.json").unlink()
    (ggufs / "Q8").mkdir()
    files = [ggufs / "some.Q4_K_M.gguf", ggufs / "Q8" / "some.Q8_0.gguf"]
    for file in files:
        file.write_bytes(b"GGUF")
    (Path.home() / ".cache/huggingface/hub/datasets--org--set").mkdir()
    model_in(paths.models_dir() / "org--fetched")
    (paths.models_dir() / "org--fetched" / "localtune.json").write_text(
        json.dumps({"repository": "org/fetched", "commit": "f" * 40, "files": {"config.json": 2}})
    )
    cached("org/fetched", {"main": "f" * 40})
    listed = found()
    named = {"org/fetched", "org/main", "hf://org/tagged@v2", f"hf://org/bare@{'d' * 40}"}
    assert set(listed) == {STARTER_NAME, *named, *map(str, files)}
    assert listed["org/fetched"].source == "prepared"
    assert all(find_model(base) == listed[base].path for base in named)
    assert [listed[str(file)].has_name for file in files] == [False, False]


def test_directories_are_searched_two_levels_deep_and_each_model_is_listed_once(tmp_path: Path) -> None:
    own = model_in(tmp_path / "own")
    nested = model_in(tmp_path / "org" / "nested")
    begun = model_in(tmp_path / "begun", weights=False)
    model_in(tmp_path / "a" / "b" / "deep")
    for hidden in (".cache", "node_modules"):
        model_in(tmp_path / hidden / "model")
    for name in ("a.gguf", "b-00001-of-00003.gguf", "b-00002-of-00003.gguf", "b-00003-of-00003.gguf", ".c.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    (tmp_path / "d.gguf").mkdir()
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "config.json").write_text("{}")
    os.symlink(tmp_path, tmp_path / "around")
    os.symlink(own, tmp_path / "link")
    listed = found(tmp_path, tmp_path, own, tmp_path / "none")
    real = {os.path.realpath(model.path) for model in listed.values() if model.source == "directory"}
    first = [tmp_path / name for name in ("a.gguf", "b-00001-of-00003.gguf")]
    assert real == set(map(str, [own, nested, begun, *first]))
    assert all(os.path.isabs(base) for base, model in listed.items() if model.source == "directory")


def test_a_directory_that_may_not_be_read_is_reported(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with unprivileged():
        assert unread(closed) == [f"{closed} cannot be searched: Permission denied."]
        # Below a directory it is passed over.
        assert unread(tmp_path) == []


@cases(
    ("limit", "value", "fewest", "most"),
    [("MOST_MODELS", 5, 5, 5), ("MOST_ENTRIES", 40, 2, 9), ("MOST_OF_ONE", 10, 11, 11), ("MOST_SECONDS", -1.0, 0, 0)],
)
def test_a_search_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, fewest: int, most: int
) -> None:
    for number in range(30):
        model_in(tmp_path / f"model-{number:02}")
    assert len(found(tmp_path)) == 31
    seen: list[object] = []
    for item in find_models([tmp_path], lambda: len(seen) >= 3):
        seen.append(item)
    assert len(seen) == 3
    monkeypatch.setattr(places, limit, value)
    assert fewest <= len(found(tmp_path)) <= most


# Ollama.


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ollama's directory, with the file of a model that no manifest names yet."""
    store = tmp_path / "ollama"
    (store / "blobs").mkdir(parents=True)
    (store / "blobs" / f"sha256-{DIGEST}").write_bytes(b"GGUF")
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    return store


def manifest(store: Path, name: str, content: object = None) -> Path:
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{DIGEST}", "size": 4},
    ]
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers} if content is None else content))
    return path


def test_models_of_ollama_are_gguf_files_with_its_names(ollama: Path) -> None:
    for path, name in (
        ("registry.ollama.ai/library/llama3.2/1b", "llama3.2:1b"),
        ("registry.ollama.ai/me/mine/latest", "me/mine:latest"),
        ("hf.co/org/some-GGUF/Q4_K_M", "hf.co/org/some-GGUF:Q4_K_M"),
    ):
        place = manifest(ollama, path)
        model = found()[str(ollama / "blobs" / f"sha256-{DIGEST}")]
        assert (model.name, model.place, model.source) == (name, "Ollama", "ollama")
        place.unlink()


def test_manifests_that_name_no_model_are_passed_over(ollama: Path) -> None:
    model = {"mediaType": "application/vnd.ollama.image.model"}
    for number, content in enumerate(
        (
            [],
            {"layers": None},
            {"layers": [None]},
            {"layers": [model]},
            {"layers": [{**model, "digest": 5}]},
            {"layers": [{**model, "digest": "sha256:../../../etc/passwd"}]},
            {"layers": [{**model, "digest": "sha256:" + "c" * 64}]},
            {"layers": [{"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{DIGEST}"}]},
        )
    ):
        manifest(ollama, f"registry.ollama.ai/library/odd/{number}", content)
    (ollama / "manifests" / "not-json").write_bytes(b"\xff{")
    (ollama / "manifests" / "large").write_bytes(b" " * (2 << 20))
    os.mkfifo(ollama / "manifests" / "pipe")
    assert set(found()) == {STARTER_NAME}
    manifest(ollama, "registry.ollama.ai/library/good/latest")
    assert len(found()) == 2


def test_a_store_of_ollama_that_may_not_be_read_is_reported(ollama: Path) -> None:
    manifest(ollama, "registry.ollama.ai/library/good/latest")
    (ollama / "blobs" / f"sha256-{DIGEST}").chmod(0)
    with unprivileged():
        assert unread() == [f"1 model of Ollama in {ollama} cannot be read by this user."]
        assert set(found()) == {STARTER_NAME}
    ollama.chmod(0)
    with unprivileged():
        assert unread() == [f"Ollama's store in {ollama} cannot be read: Permission denied."]
    ollama.chmod(0o700)


# Typed text.


def test_a_typed_path_is_a_model_if_it_is_there(tmp_path: Path) -> None:
    model = model_in(tmp_path / "org" / "model")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "rows.txt").write_text("x")
    typed = typed_model("org/model", tmp_path)
    assert typed is not None
    assert (typed.base, typed.name) == (str(model), "model")
    assert typed_model("./org/../a.gguf", tmp_path) == typed_model(str(tmp_path / "a.gguf"), Path("/"))
    refused = ("", " ", "none", "rows.txt", "a\x00b", "~nobody-by-this-name/x")
    assert not any(typed_model(text, tmp_path) for text in refused)


def test_what_can_be_fetched_looks_like_a_model_of_a_hub() -> None:
    assert fetchable(" Qwen/Qwen2.5-0.5B-Instruct ") == HubEntry("model", "Qwen/Qwen2.5-0.5B-Instruct")
    assert fetchable("https://huggingface.co/org/model") == HubEntry("model", "org/model")
    assert fetchable("hf://org/model@v1") == HubEntry("model", "org/model", "v1")
    for text in ("", "model", "a/b/c", "/models/x", "../x", "hf://datasets/org/set", "hf://org/model/file", "org/"):
        assert fetchable(text) is None


def test_a_model_is_found_by_directory_name_and_hub_id(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert find_model("own", tmp_path) == tmp_path / "own"
    assert find_model(str(tmp_path / "own")) == tmp_path / "own"
    assert find_model("own") is None
    assert find_model("mine") is None
    assert model_in(paths.models_dir() / "mine") == find_model("mine")
    fetched = model_in(paths.models_dir() / "org--model")
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
    directory = model_in(paths.models_dir() / "My-model-0123")
    record = {"identity": gguf_identity(gguf), CHECKED: True, "files": {"config.json": 2}}
    (directory / "localtune.json").write_text(json.dumps(record))
    assert find_model(str(gguf)) == find_model("My model.gguf", tmp_path) == directory
    (directory / "config.json").write_text("{ }")
    assert find_model(str(gguf)) is None
    (directory / "config.json").write_text("{}")
    os.utime(gguf, (1, 1))
    assert find_model(str(gguf)) is None


@cases("name", ["~nobody-by-this-name/x", "~a\x00b/c", "hf://", "hf://x", "a/b/c", "/no\x1b]52;c;x\x07", "a" * 5000])
def test_names_that_are_no_names_find_nothing_and_raise_nothing(name: str) -> None:
    assert find_model(name) is None
    with pytest.raises(UserError, match="is not on this machine, so its memory cannot be planned") as refusal:
        locate_model(name)
    for error in (missing_model(name), refusal.value):
        assert error.hint
        assert not set(error.message) & set("\x00\x1b")


def test_a_revision_is_found_in_the_hub_cache_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_in_hub_cache(parse_entry("hf://org/model")) is None
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repository, old, new = tmp_path / "hub" / "models--org--model", "a" * 40, "b" * 40
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
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert find_in_hub_cache(parse_entry("hf://org/model")) is None


@cases(("name", "meant"), tables(__file__)["meant"].items())
def test_a_mistyped_name_is_recognized(name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(paths.home() / "hub"))
    model_in(paths.models_dir() / "my-model")
    (paths.home() / "hub" / "models--Qwen--Qwen2.5-7B-Instruct").mkdir(parents=True, exist_ok=True)
    assert close_name(name) == meant
    hint = missing_model(name).hint
    assert (f"Did you mean {meant}?" in hint) == (meant is not None)
    assert "localtune-tui fetch hf://" in hint


def test_a_model_is_here_if_a_run_can_take_it(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "own").mkdir()
    model_in(paths.models_dir() / "mine")
    here = (STARTER_NAME, "a.gguf", "own", "mine", str(tmp_path / "own"), "")
    names = (*here, "b.gguf", "other", "org/model", "hf://org/model", "a\x00b")
    assert tuple(name for name in names if is_model_here(name, tmp_path)) == here

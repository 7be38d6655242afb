"""Base model fingerprints: over all bytes, which are read once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.models import fingerprint
from core.models.fingerprint import BaseFingerprint, ends_fingerprint
from core.small_files import hash_file
from tests.core.models.spoiling import copy_model, read_safetensors, split_weights, write_safetensors


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with a middle between its ends, whose files count as settled, however young they are."""
    monkeypatch.setattr(fingerprint, "_SETTLED_SECONDS", 0.0)
    model = copy_model(tiny_model_dir, tmp_path / "model")
    header, data = read_safetensors(model / "model.safetensors")
    header["large"] = {"dtype": "U8", "shape": [3 << 20], "data_offsets": [len(data), len(data) + (3 << 20)]}
    write_safetensors(model / "model.safetensors", header, data + bytes(3 << 20))
    return model


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed, as they are."""
    found: list[str] = []

    def note(path: Path) -> str:
        found.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(fingerprint, "hash_file", note)
    return found


def flip(path: Path, place: int) -> None:
    """Change a byte in place; size, inode and, by intent, the time of modification stay."""
    facts = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def cache_file(home: Path) -> Path:
    return home / "cache" / "hashes.json"


def test_every_byte_of_the_weights_and_of_what_says_how_they_are_used_counts(model: Path) -> None:
    before = BaseFingerprint(model).value
    assert re.fullmatch("sha256:[0-9a-f]{64}", before)
    size = (model / "model.safetensors").stat().st_size
    described = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for name, place in [("model.safetensors", at) for at in (0, size // 2, size - 1)] + [
        (name, 1) for name in described
    ]:
        flip(model / name, place)
        assert BaseFingerprint(model).value != before, (name, place)
        flip(model / name, place)
    assert BaseFingerprint(model.rename(model.with_name("elsewhere"))).value == before


def test_every_shard_and_the_index_count_and_other_files_do_not(model: Path) -> None:
    split_weights(model)
    before = BaseFingerprint(model).value
    (model / "README.md").write_text("other")
    (model / "extra.safetensors").write_bytes(b"not named by the index")
    assert BaseFingerprint(model).value == before
    for name in ("model-1.safetensors", "model-2.safetensors"):
        flip(model / name, 20)
        assert BaseFingerprint(model).value != before, name
        flip(model / name, 20)
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text() + "\n")
    assert BaseFingerprint(model).value != before


def test_files_that_are_as_they_were_are_not_read_again(model: Path, read: list[str], private_home: Path) -> None:
    before = BaseFingerprint(model).value
    assert "model.safetensors" in read
    assert stat.S_IMODE(cache_file(private_home).stat().st_mode) == 0o600
    read.clear()
    assert BaseFingerprint(model).value == before
    assert read == []
    flip(model / "model.safetensors", 5000)
    BaseFingerprint(model).settle()
    assert read == ["model.safetensors"]


def test_the_hash_of_a_file_that_was_just_written_is_not_kept(
    tmp_path: Path, tiny_model_dir: Path, private_home: Path
) -> None:
    young = copy_model(tiny_model_dir, tmp_path / "young")
    os.utime(young / "model.safetensors", (time.time() + 100, time.time() + 100))
    BaseFingerprint(young).settle()
    kept = json.loads(cache_file(private_home).read_text()) if cache_file(private_home).exists() else {}
    assert str(young / "model.safetensors") not in kept


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    garbage=st.binary(max_size=40)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_a_damaged_cache_costs_a_look_and_nothing_else(model: Path, private_home: Path, garbage: bytes) -> None:
    cache = cache_file(private_home)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.unlink(missing_ok=True)
    expected = BaseFingerprint(model).value
    cache.write_bytes(garbage)
    assert BaseFingerprint(model).value == expected
    entries = json.loads(cache.read_text())
    entries[str(model / "model.safetensors")] = garbage.decode("latin-1")
    cache.write_text(json.dumps(entries))
    assert BaseFingerprint(model).value == expected


def test_a_cache_that_cannot_be_kept_costs_nothing(model: Path, private_home: Path) -> None:
    private_home.mkdir()
    (private_home / "cache").write_text("in the way")
    assert BaseFingerprint(model).value == BaseFingerprint(model).value


def test_the_cache_keeps_what_was_used_last(model: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "KEPT", 8)
    copies = [copy_model(model, model.with_name(f"copy-{number}")) for number in range(3)]
    for copy in copies:
        BaseFingerprint(copy).settle()
    kept = json.loads(cache_file(private_home).read_text())
    assert len(kept) == 8
    assert str(copies[-1] / "model.safetensors") in kept
    assert str(copies[0] / "model.safetensors") not in kept


def test_the_ends_that_earlier_versions_hashed_are_recognized(model: Path) -> None:
    digest = hashlib.sha256()
    raw = (model / "model.safetensors").read_bytes()
    digest.update(f"model.safetensors:{len(raw)}:".encode() + raw[: 1 << 20] + raw[-(1 << 20) :])
    assert digest.hexdigest() == ends_fingerprint(model)
    assert BaseFingerprint(model).matches(digest.hexdigest())
    assert BaseFingerprint(model).matches(BaseFingerprint(model).value)
    assert not BaseFingerprint(model).matches("sha256:" + digest.hexdigest())
    flip(model / "model.safetensors", len(raw) - 1)
    assert not BaseFingerprint(model).matches(digest.hexdigest())


def test_another_base_than_the_one_trained_on_is_refused(model: Path) -> None:
    fingerprint = BaseFingerprint(model)
    fingerprint.require(fingerprint.value, "run a")
    with pytest.raises(UserError) as caught:
        fingerprint.require("sha256:" + "0" * 64, "run a")
    assert caught.value.message == f"The base model {model} has changed since run a was trained on it."
    assert caught.value.hint.startswith("Put the former one back")


def test_a_file_that_changes_while_it_is_read_is_reported(model: Path) -> None:
    found = BaseFingerprint(model)
    assert found.value
    flip(model / "model.safetensors", 5000)
    with pytest.raises(UserError, match=r"model\.safetensors was changed while it was read"):
        found.settle()
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="was changed"):
        found.settle()


def test_a_missing_file_is_reported_and_waiting_can_be_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        BaseFingerprint(model).settle()

    held, real = threading.Event(), fingerprint._files
    monkeypatch.setattr(fingerprint, "_files", lambda directory: real(directory) if held.wait(60) else [])
    with pytest.raises(KeyboardInterrupt):
        BaseFingerprint(model).settle(mock.Mock(side_effect=KeyboardInterrupt))
    held.set()

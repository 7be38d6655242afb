"""The header of a GGUF file, read without its weights: against the reference writer, and damaged files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.memory.gguf import read_gguf_header
from core.memory.model_files import load_architecture


def write_gguf(path: Path, architecture: str = "llama", *, head: bool = False) -> Path:
    """A model of two layers, as far as its header goes."""
    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(512)
    writer.add_token_list(["a", "b", "né"] * 40)
    writer.add_token_scores([0.5] * 120)
    writer.add_tensor("token_embd.weight", np.zeros((120, 64), dtype=np.float32))
    if head:
        writer.add_tensor("output.weight", np.zeros((120, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_gives_the_architecture(tmp_path: Path) -> None:
    architecture = load_architecture(write_gguf(tmp_path / "m.gguf"))
    assert (architecture.hidden, architecture.depth, architecture.vocabulary) == (64, 2, 120)
    assert architecture.tied
    assert architecture.positions == 512
    attention = architecture.layers[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 16)


def test_a_head_of_its_own_is_seen(tmp_path: Path) -> None:
    assert not load_architecture(write_gguf(tmp_path / "m.gguf", head=True)).tied


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="architecture mamba"):
        load_architecture(write_gguf(tmp_path / "m.gguf", "mamba"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match="not a GGUF file"):
        read_gguf_header(tmp_path / "m.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(UserError, match="damaged or cut short"):
        read_gguf_header(tmp_path / "empty.gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@given(st.data())
def test_damage_is_refused_or_harmless(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(whole[: data.draw(st.integers(5, len(whole)))])
    for place in data.draw(st.lists(st.integers(4, min(len(damaged), 2000) - 1), max_size=3)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    path.write_bytes(damaged)
    with contextlib.suppress(UserError):  # anything else is a fault of the reader
        assert load_architecture(path).parameters > 0

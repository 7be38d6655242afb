"""GGUF headers, read without the weights: against the reference writer, and from damaged files."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.models.architecture.gguf_header import LONGEST_TEXT, MOST_NUMBERS, MOST_STRINGS, check_gguf, read_gguf_header
from core.models.architecture.load import load_architecture
from tests.cases import cases


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
    with contextlib.suppress(UserError):
        check_gguf(path)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def array(kind: int, length: int) -> bytes:
    return text(b"a") + struct.pack("<IIQ", 9, kind, length)


BOMBS = {
    "strings": (array(8, MOST_STRINGS + 1) + bytes(8 * (MOST_STRINGS + 1)), 1, 0),
    "arrays of arrays": (array(9, 1 << 20) + struct.pack("<IQ", 0, 0) * (1 << 20), 1, 0),
    "deep arrays": (text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 1000, 1, 0),
    "numbers": (array(0, MOST_NUMBERS + 1) + bytes(MOST_NUMBERS + 1), 1, 0),
    "numbers that are not there": (array(0, 1 << 62), 1, 0),
    "a string that is not there": (text(b"a") + struct.pack("<IQ", 8, 1 << 62), 1, 0),
    "a long string": (text(b"a") + struct.pack("<I", 8) + text(bytes(LONGEST_TEXT + 1)), 1, 0),
    "entries": (b"".join(text(b"%d" % number) + struct.pack("<IB", 0, 0) for number in range(5000)), 5000, 0),
    "tensors": (b"", 0, 1 << 40),
    "dimensions": (text(b"t") + struct.pack("<I", 1 << 31), 0, 1),
    "a product": (text(b"t") + struct.pack("<I4QIQ", 4, *[(1 << 48) - 1] * 4, 0, 0), 0, 1),
    "nothing": (text(b"t") + struct.pack("<I2QIQ", 2, 0, 4, 0, 0), 0, 1),
    "an alignment": (text(b"general.alignment") + struct.pack("<II", 4, 0), 1, 0),
}


@cases("name", BOMBS)
def test_headers_beyond_all_sense_are_refused(tmp_path: Path, name: str) -> None:
    body, entries, tensors = BOMBS[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + body)
    with pytest.raises(UserError, match="damaged or cut short"):
        read_gguf_header(path)


def test_a_name_from_the_file_is_shown_as_one_plain_line(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    name = b"x\x1b]0;title\x07\n"
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"general.architecture") + struct.pack("<I", 8) + text(name)
    )
    with pytest.raises(UserError) as caught:
        load_architecture(path)
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message


@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_anything_behind_the_counts_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, tensors: int, entries: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + body)
    with contextlib.suppress(UserError):
        check_gguf(path)

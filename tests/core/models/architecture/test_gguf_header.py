"""GGUF headers, read without the weights: against the reference writer, and from damaged files."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.models.architecture.gguf_header import (
    LONGEST_TEXT,
    MOST_NUMBERS,
    MOST_STRINGS,
    GgufTensor,
    check_gguf,
    read_gguf_header,
)
from core.models.architecture.measuring import load_architecture
from tests.cases import cases


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    head: bool = False,
    count: int = 2,
    blocks: tuple[int, ...] = (0, 1),
    **metadata: int,
) -> Path:
    """A model of two layers, as far as its header goes, with tensors of some blocks."""
    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(64)
    writer.add_block_count(count)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(512)
    writer.add_token_list(["a", "b", "né"] * 40)
    writer.add_token_scores([0.5] * 120)
    for name, value in metadata.items():
        writer.add_uint32(name.replace("__", "."), value)
    for name in ("token_embd.weight", "output.weight") if head else ("token_embd.weight",):
        writer.add_tensor(name, np.zeros((120, 64), dtype=np.float32))
    for block, part in itertools.product(blocks, ("attn_q", "attn_k", "ffn_up")):
        writer.add_tensor(f"blk.{block}.{part}.weight", np.zeros((4, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_gives_the_architecture(tmp_path: Path) -> None:
    architecture = load_architecture(write_gguf(tmp_path / "m.gguf"))
    assert (architecture.hidden, architecture.depth, architecture.vocabulary) == (64, 2, 120)
    assert architecture.tied
    assert not load_architecture(write_gguf(tmp_path / "head.gguf", head=True)).tied
    assert architecture.positions == 512
    attention = architecture.layers[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 16)


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
    "a tensor twice": (2 * (text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)), 0, 2),
    "an alignment": (text(b"general.alignment") + struct.pack("<II", 4, 0), 1, 0),
}


@cases("name", BOMBS)
def test_headers_beyond_all_sense_are_refused(tmp_path: Path, name: str) -> None:
    body, entries, tensors = BOMBS[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + body)
    with pytest.raises(UserError, match="damaged or cut short"):
        read_gguf_header(path)


def test_a_file_of_another_kind_is_refused_in_one_plain_line(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    name = b"x\x1b]0;title\x07\n"
    named = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"general.architecture") + struct.pack("<I", 8) + text(name)
    for content, words in ((b"PK\x03\x04" + bytes(100), "not a GGUF"), (b"", "damaged or"), (named, "architecture x")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            load_architecture(path)
        assert caught.value.message.isprintable()


@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_anything_behind_the_counts_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, tensors: int, entries: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + body)
    with contextlib.suppress(UserError):
        check_gguf(path)


def test_a_whole_file_is_accepted_and_its_places_are_known(tmp_path: Path) -> None:
    header = check_gguf(write_gguf(tmp_path / "m.gguf"))
    assert header.tensors["token_embd.weight"] == GgufTensor((64, 120), 0, 0)
    assert str(header.tensors["token_embd.weight"]) == "120 x 64"
    assert sum(tensor.elements for tensor in header.tensors.values()) == 120 * 64 + 6 * 4 * 32
    assert header.data_bytes >= 4 * 120 * 64 + 2 * 6 * 4 * 32


@cases("kind", GGML_QUANT_SIZES)
def test_sizes_match_the_reference(kind: GGMLQuantizationType) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    assert GgufTensor((block * 3, 5), int(kind), 0).size == 15 * size


def test_further_blocks_may_be_there_or_not(tmp_path: Path) -> None:
    check_gguf(write_gguf(tmp_path / "with.gguf", count=3, blocks=(0, 1, 2), llama__nextn_predict_layers=1))
    check_gguf(write_gguf(tmp_path / "without.gguf", count=3, blocks=(0, 1), llama__nextn_predict_layers=1))
    with pytest.raises(UserError, match="lacks every weight of block 0"):
        check_gguf(write_gguf(tmp_path / "other.gguf", count=3, blocks=(1, 2), llama__nextn_predict_layers=1))


@cases(
    ("options", "says"),
    [
        ({"count": 100_000_000}, r"llama\.block_count is 100000000, and the weights are of 2 blocks"),
        ({"count": 3}, "is 3, and the weights are of 2 blocks"),
        ({"count": 1}, "is 1, and the weights are of 2 blocks"),
        ({"count": 0}, "does not say how many blocks"),
        ({"count": 2, "blocks": (0, 2)}, "is 2, and the weights are of 2 blocks"),
        ({"count": 3, "blocks": (0, 2, 3)}, "is 3, and the weights are of 3 blocks"),
        ({"count": 2, "blocks": ()}, "of 0 blocks"),
        ({"split__count": 3}, "is one of 3 parts"),
    ],
)
def test_blocks_that_are_not_there_are_reported(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(UserError, match=says) as caught:
        check_gguf(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def _cut(raw: bytearray, _begin: int) -> None:
    del raw[-10:]


def _set(code: str, at: int, value: int) -> Callable[[bytearray, int], None]:
    """A change of the entry of a tensor, whose dimensions begin at a place."""
    return lambda raw, begin: struct.pack_into(code, raw, begin + at, value)


@cases(
    ("change", "says"),
    [
        (_set("<Q", 20, 0), r"lies where .* does"),
        (_set("<Q", 20, 1 << 40), "lies beyond its end"),
        (_set("<Q", 0, 1 << 40), "lies beyond its end"),
        (_set("<Q", 20, (1 << 64) - 1), "damaged or cut short"),
        (_set("<Q", 0, (1 << 63) + 1), "damaged or cut short"),
        (_cut, r"blk\.1\.ffn_up\.weight lies beyond its end"),
        (_set("<I", 16, 77), "is of the type 77, which is not known"),
    ],
)
def test_places_outside_and_on_top_of_one_another_are_refused(
    tmp_path: Path, change: Callable[[bytearray, int], None], says: str
) -> None:
    path, name = write_gguf(tmp_path / "m.gguf"), b"blk.1.ffn_up.weight"
    raw = bytearray(path.read_bytes())
    change(raw, raw.index(name) + len(name) + 4)
    path.write_bytes(raw)
    with pytest.raises(UserError, match=says):
        check_gguf(path)

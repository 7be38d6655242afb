"""Incomplete GGUF files, recognized by their headers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from core.errors import UserError
from core.models.architecture.gguf_header import GgufTensor, check_gguf, read_gguf_header
from tests.cases import cases

PARTS = ("attn_q", "attn_k", "ffn_up")


def write(path: Path, *, count: int = 2, blocks: tuple[int, ...] = (0, 1), **metadata: int) -> Path:
    """A file with tensors of some blocks, sound as a file."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(count)
    for name, value in metadata.items():
        writer.add_uint32(name.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), dtype=np.float32))
    for block in blocks:
        for part in PARTS:
            writer.add_tensor(f"blk.{block}.{part}.weight", np.zeros((4, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_file_is_accepted_and_its_places_are_known(tmp_path: Path) -> None:
    header = check_gguf(write(tmp_path / "m.gguf"))
    assert header.tensors["token_embd.weight"] == GgufTensor((64, 8), 0, 0)
    assert str(header.tensors["token_embd.weight"]) == "8 x 64"
    assert sum(tensor.elements for tensor in header.tensors.values()) == 8 * 64 + 6 * 4 * 32
    assert header.data_bytes >= 4 * 8 * 64 + 2 * 6 * 4 * 32


@cases("kind", GGML_QUANT_SIZES)
def test_sizes_are_those_of_the_reference(kind: GGMLQuantizationType) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    assert GgufTensor((block * 3, 5), int(kind), 0).size == 15 * size


def test_further_blocks_may_be_there_or_not(tmp_path: Path) -> None:
    check_gguf(write(tmp_path / "with.gguf", count=3, blocks=(0, 1, 2), llama__nextn_predict_layers=1))
    check_gguf(write(tmp_path / "without.gguf", count=3, blocks=(0, 1), llama__nextn_predict_layers=1))
    with pytest.raises(UserError, match="lacks every weight of block 0"):
        check_gguf(write(tmp_path / "other.gguf", count=3, blocks=(1, 2), llama__nextn_predict_layers=1))


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
def test_blocks_that_are_not_there_are_told(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "m.gguf", **options)
    with pytest.raises(UserError, match=says) as caught:
        check_gguf(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def _edit(path: Path, name: str, change: Callable[[bytearray, int], None]) -> None:
    """Change the entry of a tensor; the function is given the file and where its dimensions begin."""
    raw = bytearray(path.read_bytes())
    change(raw, raw.index(name.encode()) + len(name) + 4)
    path.write_bytes(raw)


def _set(code: str, at: int, value: int) -> Callable[[bytearray, int], None]:
    return lambda raw, begin: struct.pack_into(code, raw, begin + at, value)


@cases(
    ("change", "says"),
    [
        (_set("<Q", 20, 0), r"lies where .* does"),
        (_set("<Q", 20, 1 << 40), "lies beyond its end"),
        (_set("<Q", 0, 1 << 40), "lies beyond its end"),
        (_set("<Q", 20, (1 << 64) - 1), "damaged or cut short"),
        (_set("<Q", 0, (1 << 63) + 1), "damaged or cut short"),
        (_set("<I", 16, 77), "is of the type 77, which is not known"),
    ],
)
def test_places_outside_and_on_top_of_one_another_are_refused(
    tmp_path: Path, change: Callable[[bytearray, int], None], says: str
) -> None:
    path = write(tmp_path / "m.gguf")
    _edit(path, "blk.1.ffn_up.weight", change)
    with pytest.raises(UserError, match=says):
        check_gguf(path)


def test_a_file_that_was_cut_is_told_before_anything_is_built(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight lies beyond its end"):
        check_gguf(path)


def test_a_tensor_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"))
    with pytest.raises(UserError, match="is damaged"):
        read_gguf_header(path)

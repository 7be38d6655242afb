"""Headers of safetensors, sound and not."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.models.tensors import Tensor, read_header, read_weights

from .spoiling import write_safetensors


def entry(begin: Any, end: Any, shape: Any = (2,), dtype: Any = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_names_types_and_shapes_are_read(tiny_model_dir: Path) -> None:
    found = read_weights(tiny_model_dir)
    assert found["model.layers.1.mlp.down_proj.weight"] == Tensor("BF16", (64, 128))
    assert "__metadata__" not in found
    assert str(found["model.norm.weight"]) == "64"


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": entry(0, 4), "b": entry(4, 8)}, 8, None),
        ({"a": entry(0, 4), "b": entry(4, 8)}, 7, "is cut short"),
        ({"a": entry(0, 4), "b": entry(4, 8)}, 9, "has more bytes"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "one behind the other"),
        ({"a": entry(0, 4), "b": entry(6, 10)}, 10, "one behind the other"),
        ({"a": entry(0, 5)}, 5, "makes no sense"),
        ({"a": entry(4, 0)}, 4, "makes no sense"),
        ({"a": entry(0, 1 << 62, (1 << 61,))}, 4, "is cut short"),
        ({"a": entry(-4, 0)}, 4, "makes no sense"),
        ({"a": entry(0, 4, (-2,))}, 4, "makes no sense"),
        ({"a": entry(0, 4, dtype=7)}, 4, "makes no sense"),
        ({"a": entry(0, "4")}, 4, "makes no sense"),
        ({"a": entry(0, 3, dtype="F4")}, 3, None),
        ({"a": {}}, 4, "makes no sense"),
        ([], 0, "makes no sense"),
        ({}, 0, None),
    ],
)
def test_what_a_header_says_must_be_so(tmp_path: Path, header: Any, data: int, says: str | None) -> None:
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, header, bytes(data))
    if says is None:
        assert set(read_header(path)) == set(header)
        return
    with pytest.raises(UserError, match=says) as caught:
        read_header(path)
    assert caught.value.hint == "Copy or fetch it again."


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64) | st.binary(max_size=40).map(lambda raw: len(raw).to_bytes(8, "little") + raw))
def test_any_other_file_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    try:
        header = json.loads(content[8:])
    except ValueError:
        header = None
    if header == {}:
        assert read_header(path) == {}  # a file without tensors is valid
        return
    with pytest.raises(UserError):
        read_header(path)


@given(place=st.integers(0, 600), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_flipped_bit_of_a_header_raises_nothing_else(tmp_path: Path, place: int, bit: int) -> None:
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, {f"layer.{i}": entry(4 * i, 4 * i + 4) for i in range(8)}, bytes(32))
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    with contextlib.suppress(UserError):
        read_header(path)

"""Safetensors headers, valid and damaged."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.models import tensors
from core.models.check import by_layer
from core.models.tensors import FILE_TENSORS, HEADER_LIMIT, Tensor, read_header, read_weights
from tests.cases import cases
from tests.core.models.spoiling import copy_model, split_weights, write_safetensors


def entry(begin: Any, end: Any, shape: Any = (2,), dtype: Any = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_names_types_and_shapes_are_read(tiny_model_dir: Path) -> None:
    found = read_weights(tiny_model_dir)
    assert found["model.layers.1.mlp.down_proj.weight"] == Tensor("BF16", (64, 128))
    assert "__metadata__" not in found
    assert str(found["model.norm.weight"]) == "64"


@cases(
    ("header", "data", "says"),
    [
        ({"a": entry(0, 4), "b": entry(4, 8)}, 8, None),
        ({"a": entry(0, 4), "b": entry(4, 8)}, 7, "is cut short"),
        ({"a": entry(0, 4), "b": entry(4, 8)}, 9, "has more bytes"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "one behind the other"),
        ({"a": entry(0, 4), "b": entry(6, 10)}, 10, "one behind the other"),
        ({"a": entry(0, 5)}, 5, "makes no sense"),
        ({"a": entry(4, 0)}, 4, "makes no sense"),
        ({"a": entry(0, 1 << 46, (1 << 45,))}, 4, "is cut short"),
        ({"a": entry(0, 1 << 62, (1 << 61,))}, 4, "makes no sense"),
        ({"a": entry(0, 0, [1 << 62] * 200_000)}, 0, "makes no sense"),
        ({"a": entry(0, 0, [1 << 47, 1 << 47, 0])}, 0, None),
        ({"a": entry(0, 0, [1 << 47, 1 << 47], dtype="F4")}, 0, "makes no sense"),
        ({"a": entry(0, 0, [1] * 8 + [0])}, 0, "makes no sense"),
        ({"a": entry(0, 0, [0.0])}, 0, "makes no sense"),
        ({"a": {"dtype": "U8", "shape": "", "data_offsets": [0, 0]}}, 0, "makes no sense"),
        ({f"{number}": entry(0, 0, [0]) for number in range(FILE_TENSORS + 1)}, 0, "more than 65,536 tensors"),
        ({f"{number}": {} for number in range(500_000)}, 0, "more than 65,536 tensors"),
        ({"a": [[]] * 2_000_000}, 0, "more than 65,536 tensors"),
        ({"a": "x" * (HEADER_LIMIT + 1)}, 0, "more than 16 MiB"),
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


def test_more_tensors_than_a_model_has_are_refused(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    split_weights(model)
    monkeypatch.setattr(tensors, "MODEL_TENSORS", len(read_weights(tiny_model_dir)) - 1)
    with pytest.raises(UserError, match="has more than"):
        read_weights(model)


@cases(
    ("names", "says"),
    [
        (["model-1.safetensors", "model-2.bin"], r"names model-2\.bin, which is not a safetensors file"),
        (["/etc/passwd"], "outside its directory"),
        (["../model-1.safetensors"], "outside its directory"),
        (["a/../model-1.safetensors"], "outside its directory"),
        ([".."], "lacks|not a safetensors"),
        ([""], "lacks|not a safetensors"),
        ([f"model-{number}.safetensors" for number in range(5000)], "names more than 4,096 files"),
        (["model-\u001b[31m.safetensors"], "lacks"),
    ],
)
def test_what_an_index_names_must_be_weights_beside_it(
    tmp_path: Path, tiny_model_dir: Path, names: list[str], says: str
) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    split_weights(model)
    index = {f"tensor.{number}": name for number, name in enumerate(names)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(UserError, match=says) as caught:
        read_weights(model)
    assert "\x1b" not in caught.value.message


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {"dtype": JSON_VALUES | st.just("U8"), "shape": JSON_VALUES, "data_offsets": JSON_VALUES},
    optional={"more": JSON_VALUES},
)


HEADERS = JSON_VALUES | st.dictionaries(st.text(max_size=3), ENTRIES | JSON_VALUES, max_size=3)


def _headed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def _flipped(place: int) -> bytes:
    """A sound file with a flipped bit in its header."""
    header = json.dumps({f"layer.{i}": entry(4 * i, 4 * i + 4) for i in range(8)}).encode()
    raw = bytearray(_headed(header))
    raw[place // 8 % len(raw)] ^= 1 << place % 8
    return bytes(raw) + bytes(32)


@given(
    content=st.binary(max_size=64)
    | st.binary(max_size=40).map(_headed)
    | HEADERS.map(lambda header: _headed(json.dumps(header).encode()))
    | st.integers(0, 4800).map(_flipped)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_other_file_is_refused_with_a_sentence_or_harmless(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_header(path)


def test_a_layer_of_five_thousand_digits_is_none() -> None:
    tensor = Tensor("F32", (2, 2))
    found = by_layer({"model.layers.3.a.weight": tensor, f"model.layers.{'1' * 5000}.a.weight": tensor})
    assert list(found) == [3]

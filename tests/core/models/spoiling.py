"""Damaged copies of a model, one for each kind of defect."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Header = dict[str, Any]


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one. A file that is not there is made."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def read_safetensors(path: Path) -> tuple[Header, bytes]:
    """Header and data of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_safetensors(path: Path, header: Header, data: bytes) -> None:
    """Write one, sound or not."""
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def write_zeros(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write a sound file of 16-bit zeros in these shapes, which take no room on the disk."""
    header, end = Header(), 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    write_safetensors(path, header, b"")
    os.truncate(path, path.stat().st_size + end)


def keep_tensors(source: Path, target: Path, names: set[str]) -> None:
    """Write a sound file with some tensors of another one."""
    header, data = read_safetensors(source)
    kept: Header = {}
    pieces: list[bytes] = []
    for name in sorted(names):
        begin, end = header[name]["data_offsets"]
        place = sum(map(len, pieces))
        kept[name] = {**header[name], "data_offsets": [place, place + end - begin]}
        pieces.append(data[begin:end])
    write_safetensors(target, kept, b"".join(pieces))


def tensor_names(path: Path) -> set[str]:
    """The tensors in a file."""
    return set(read_safetensors(path)[0]) - {"__metadata__"}


def split_weights(model: Path) -> None:
    """The same weights in two shards with their index."""
    whole = model / "model.safetensors"
    names = sorted(tensor_names(whole))
    halves = {"model-1.safetensors": set(names[::2]), "model-2.safetensors": set(names[1::2])}
    for name, tensors in halves.items():
        keep_tensors(whole, model / name, tensors)
    index = {tensor: name for name, tensors in halves.items() for tensor in tensors}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    whole.unlink()


def drop_tensors(model: Path, part: str) -> None:
    """Take the tensors with this in their names out of the weights."""
    weights = model / "model.safetensors"
    keep_tensors(weights, weights, {name for name in tensor_names(weights) if part not in name})


def copy_model(source: Path, target: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(source, target))

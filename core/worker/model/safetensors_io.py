"""Streaming safetensors files: tensors are read and written one by one, without a second copy of a large model.

The format is https://huggingface.co/docs/safetensors: eight bytes with the header's length, the header as JSON, the
tensors' bytes. It is written through a Python file, so that a full disk is an ``OSError``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from core.errors import UserError
from core.models.description import split_names

#: Dtypes by the names of the format.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and shape of a tensor still to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors into a safetensors file; each is copied to the host separately.

    Raises:
        OSError: If it cannot be written.
    """
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_tensors(path, specs, tensors.__getitem__)


def stream_tensors(path: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], torch.Tensor]) -> None:
    """Write a safetensors file whose tensors are read one by one as they are written.

    Args:
        path: The file.
        specs: Its tensors, in their order.
        read: Returns a tensor of the dtype and shape in its spec.

    Raises:
        OSError: If it cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.bytes
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, spec in specs.items():
            tensor = read(name)
            if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, and {spec} was announced")
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def tensor_names(path: Path) -> dict[str, str]:
    """The tensors of a file of trained weights: name in the model to name in the file.

    Earlier versions trained composite models whole: their files use the names of the whole model, and contain towers,
    which are left out.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {own: name for name, own in split_names(file.keys()).text.items()}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


@torch.no_grad()
def read_tensors(path: Path, into: Mapping[str, torch.Tensor], *, rows: Callable[[str], slice] | None = None) -> None:
    """Copy a file's tensors over those of the same names.

    Args:
        path: A safetensors file.
        into: Every tensor of the file, and no other, in the same shape and dtype; see :func:`tensor_names`.
        rows: Returns the rows of a tensor to read, by its name; None for all.

    Raises:
        UserError: If it cannot be read or its content differs.
    """
    names = tensor_names(path)
    if different := sorted(set(names) ^ set(into)):
        raise UserError(f"{path} does not fit this model: {different[0]}.", "Use the base it was made from.")
    try:
        with safe_open(path, framework="pt") as file:
            for name, tensor in into.items():
                if rows is not None and rows(name).start == rows(name).stop:
                    continue  # safetensors refuses to read a shard without rows
                stored = file.get_tensor(names[name]) if rows is None else file.get_slice(names[name])[rows(name)]
                if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                    raise UserError(
                        f"{path} does not fit this model: {name} is {tuple(stored.shape)} {stored.dtype}.",
                        "Use the base and the precision that it was made with.",
                    )
                tensor.copy_(stored)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read: {error}", "It may be damaged; use an earlier one.")

"""Tensors to and from safetensors files, one at a time: neither way needs a second copy of a large model in memory.

The format is https://huggingface.co/docs/safetensors: eight bytes with the header's length, the header as JSON, the
tensors' bytes. It is written through a Python file, so that a full disk is an ``OSError``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from core.errors import UserError

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int64: "I64"}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors into a safetensors file; each is copied to the host by itself.

    Raises:
        OSError: If it cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def tensor_names(path: Path) -> list[str]:
    """The names of a file's tensors.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


@torch.no_grad()
def read_tensors(path: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Copy a file's tensors over those of the same names.

    Args:
        path: A safetensors file.
        into: Every tensor that the file must hold, and no other, in the same shape and dtype.

    Raises:
        UserError: If it cannot be read or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if different := sorted(names ^ set(into)):
                raise UserError(f"{path} does not fit this model: {different[0]}.", "Use the base it was made from.")
            for name, tensor in into.items():
                stored = file.get_tensor(name)
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

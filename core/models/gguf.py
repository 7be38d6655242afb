"""GGUF integrity check from the header alone, before anything is built from the file."""

from __future__ import annotations

import re
from pathlib import Path

from core.errors import UserError
from core.models.architecture.gguf_header import GgufHeader, read_gguf_header
from core.text import one_line

_BLOCK = re.compile(r"(?:^|\.)blk\.(\d{1,9})\.")
_AGAIN = "Copy or fetch it again."


def check_gguf(path: Path) -> GgufHeader:
    """Read a file's header, and check that all weights are present, at their offsets and in their blocks.

    Raises:
        UserError: If it is damaged, cut short, one part of several, of an unknown type, or lacks blocks.
    """
    header = read_gguf_header(path)
    if not header.tensors:
        raise UserError(f"{path} has no weights.", _AGAIN)
    parts = header.metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise UserError(
            f"{path} is one of {one_line(str(parts), 20)} parts.",
            "Join them with 'llama-gguf-split --merge', and give the whole file.",
        )
    _check_places(header, path)
    _check_blocks(header, path)
    return header


def _check_places(header: GgufHeader, path: Path) -> None:
    """Check that every tensor is inside the file, without overlaps."""
    end, before = 0, ""
    for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].offset):
        size, shown = tensor.size, one_line(name, 120)
        if size is None:
            raise UserError(
                f"{path}: {shown} is of the type {tensor.kind}, which is not known.",
                "Give a file in another quantization.",
            )
        if tensor.offset < end:
            raise UserError(f"{path} is damaged: {shown} lies where {before} does.", _AGAIN)
        end, before = tensor.offset + size, shown
        if end > header.data_bytes:
            raise UserError(f"{path} is cut short: {shown} lies beyond its end.", _AGAIN)


def _check_blocks(header: GgufHeader, path: Path) -> None:
    """Check the block numbers against ``block_count``; blocks for multi-token prediction may be missing."""
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise UserError(f"{path} does not say of which architecture it is.", "Convert the model again.")
    key = f"{architecture}.block_count"
    count, further = header.metadata.get(key), header.metadata.get(f"{architecture}.nextn_predict_layers", 0)
    shown = one_line(key, 80)
    if type(count) is not int or count < 1:
        raise UserError(f"{path} does not say how many blocks it has ({shown}).", "Convert the model again.")
    found = {int(match[1]) for name in header.tensors if (match := _BLOCK.search(name)) is not None}
    needed = count - further if type(further) is int and 0 < further < count else count
    # The count is compared first: a wrong one may be immense.
    if not needed <= len(found) <= count or (found and max(found) >= count):
        raise UserError(
            f"{path}: {shown} is {one_line(str(count), 20)}, and the weights are of {len(found)} blocks.",
            "Take the file again from where the model is from.",
        )
    missing = next((number for number in range(needed) if number not in found), None)
    if missing is not None:
        raise UserError(f"{path} lacks every weight of block {missing}.", _AGAIN)

"""Safetensors headers: names, dtypes and shapes of the weights, without reading the weights.

The format: eight bytes with the length of the header (little endian), the header as JSON, then the tensors one after
the other without gaps (https://github.com/huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.description import (
    PICKLES,
    WEIGHTS,
    WEIGHTS_INDEX,
    is_lfs_pointer,
    lfs_pointer,
    read_description,
    unreadable,
)
from core.small_files import open_regular
from core.text import one_line

#: Bytes with the length of the header, before it.
_LENGTH_BYTES = 8
#: Longest header of a file, in bytes; 65,000 tensors take half of it.
HEADER_LIMIT = 16 << 20
#: Most tensors in a file, and in all files of a model.
FILE_TENSORS, MODEL_TENSORS = 1 << 16, 1 << 18
#: Largest index, in bytes, and most files in it.
INDEX_LIMIT, MOST_FILES = 32 << 20, 4096
#: Characters per tensor entry, plus some more for strings.
_MOST_SIGNS = {b"{": 2, b"[": 4, b",": 24}
_MOST_DIMENSIONS, _LARGEST_DIMENSION, _MOST_ELEMENTS = 8, 1 << 48, 1 << 60
#: Largest plausible offset: no file has as many bytes.
_FARTHEST = 1 << 62
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as described in the header.

    Args:
        dtype: In the format's names: ``BF16``, ``F16``, ``F32``, ``U8``.
        shape: Its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape)) or "one number"


def read_header(path: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file, and check that the file is as long as the header says.

    Raises:
        UserError: If it cannot be read, is damaged or cut short, or is a pointer of Git LFS.
    """
    return {name: tensor for name, (tensor, _) in _read_spans(path).items()}


def read_values(directory: Path, names: Collection[str]) -> dict[str, bytes]:
    """Read the bytes of a few small tensors of a model, by their names.

    Args:
        directory: The model's.
        names: Tensors that are in its files, and small.

    Raises:
        UserError: If a file cannot be read.
    """
    found: dict[str, bytes] = {}
    for path in weight_files(directory) if names else ():
        spans = {name: span for name, (_, span) in _read_spans(path).items() if name in names}
        try:
            with open_regular(path) as file:
                for name, (begin, end) in spans.items():
                    file.seek(begin)
                    found[name] = file.read(end - begin) or b""
        except OSError as error:
            raise unreadable(path, error) from error
    return found


def _read_spans(path: Path) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """The tensors of a file, with the begin and end of their bytes in it."""
    raw, size = _read_raw_header(path)
    # Counted before it is parsed: millions of small objects take seconds and gigabytes. Strings may have braces as
    # well.
    if any(raw.count(sign) > most * FILE_TENSORS for sign, most in _MOST_SIGNS.items()):
        raise _damaged(path, f"its header has more than {FILE_TENSORS:,} tensors")
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        if len(header) > FILE_TENSORS:
            raise _damaged(path, f"its header has more than {FILE_TENSORS:,} tensors")
        found = {name: _tensor(entry) for name, entry in header.items()}
        spans = {name: (entry["data_offsets"][0], entry["data_offsets"][1]) for name, entry in header.items()}
        in_order = sorted(spans.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _damaged(path, "its header makes no sense") from error
    start = _LENGTH_BYTES + len(raw)
    _check_whole(path, in_order, start, size)
    return {name: (tensor, (start + spans[name][0], start + spans[name][1])) for name, tensor in found.items()}


def _read_raw_header(path: Path) -> tuple[bytes, int]:
    """The raw header of a file, and the size of the file."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_LENGTH_BYTES + 64) or b""
            length, room = int.from_bytes(start[:_LENGTH_BYTES], "little"), size - _LENGTH_BYTES
            if is_lfs_pointer(start):
                raise lfs_pointer(path)
            if not 2 <= length <= min(HEADER_LIMIT, room):
                raise _damaged(path, _wrong_length(length, room))
            file.seek(_LENGTH_BYTES)
            return file.read(length) or b"", size
    except OSError as error:
        raise unreadable(path, error) from error


def _check_whole(path: Path, spans: Iterable[tuple[int, int]], start: int, size: int) -> None:
    """Refuse a file whose tensors do not fill it.

    Args:
        path: The file.
        spans: Begin and end of the tensors behind the header, in order.
        start: End of the header.
        size: Size of the file, in bytes.
    """
    end = 0
    for begin, next_end in spans:
        if begin != end:
            raise _damaged(path, "its tensors do not lie one behind the other")
        end = next_end
    if start + end != size:
        what = "is cut short" if start + end > size else "has more bytes"
        raise UserError(
            f"{path} {what}: it has {size:,} bytes and its header asks for {start + end:,}.", "Copy or fetch it again."
        )


def _tensor(entry: dict[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    shape, dtype = entry["shape"], entry["dtype"]
    if not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("a shape that is none")
    if not all(type(number) is int and 0 <= number < _LARGEST_DIMENSION for number in shape):
        raise ValueError("a dimension that is none")
    if not all(type(number) is int and 0 <= number <= _FARTHEST for number in (begin, end)):
        raise ValueError("a place that is none")
    elements, size = math.prod(shape), _BYTES.get(dtype)
    # Sub-byte and unknown dtypes are left to the library to check.
    if elements >= _MOST_ELEMENTS or begin > end or (size is not None and end - begin != size * elements):
        raise ValueError("a tensor of another size than its shape says")
    return Tensor(dtype, tuple(shape))


def _wrong_length(length: int, room: int) -> str:
    if length > room:
        return "its header is longer than the file"
    return f"its header has more than {HEADER_LIMIT >> 20} MiB" if length > HEADER_LIMIT else "its header is no header"


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}.", "Copy or fetch it again.")


def weight_files(directory: Path) -> list[Path]:
    """The weight files of a model, all that the index names.

    Raises:
        UserError: If there are none, or only pickles, or some are missing.
    """
    return sorted({directory / name for name in _index(directory).values()} or {directory / WEIGHTS})


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read the tensors of a model from the headers of all its weight files.

    Raises:
        UserError: If a file is missing or damaged, or lacks tensors of the index.
    """
    index = _index(directory)
    headers: dict[str, dict[str, Tensor]] = {}
    for path in weight_files(directory):
        headers[path.name] = read_header(path)
        if sum(map(len, headers.values())) > MODEL_TENSORS:
            raise UserError(f"{directory} has more than {MODEL_TENSORS:,} tensors.", "Use another model.")
    for tensor, name in index.items():
        if tensor not in headers[name]:
            raise UserError(
                f"{directory / name} lacks {one_line(tensor, 120)}, which {WEIGHTS_INDEX} says is in it.",
                "Copy index and weights from the same version of the model.",
            )
    return {name: tensor for header in headers.values() for name, tensor in header.items()}


def _index(directory: Path) -> dict[str, str]:
    """Tensor names to shards; empty if the weights are in one file.

    Raises:
        UserError: As :func:`weight_files`.
    """
    if (directory / WEIGHTS).is_file():
        return {}
    index = read_description(directory / WEIGHTS_INDEX, INDEX_LIMIT)
    if index is None:
        raise _no_weights(directory)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()) or not shards:
        raise UserError(f"{directory / WEIGHTS_INDEX} is damaged: it names no weights.", "Copy it again.")
    if not isinstance(index.get("metadata"), dict):
        raise UserError(f"{directory / WEIGHTS_INDEX} is damaged: it has no metadata.", "Copy it again.")
    names = sorted(set(shards.values()))
    if any(Path(name).name != name for name in names):
        raise UserError(f"{directory / WEIGHTS_INDEX} names files outside its directory.", "Do not use this model.")
    if other := next((name for name in names if not name.endswith(".safetensors")), None):
        raise UserError(
            f"{directory / WEIGHTS_INDEX} names {one_line(other, 120)}, which is no safetensors file.",
            "Use the safetensors version of the model.",
        )
    if len(names) > MOST_FILES:
        raise UserError(f"{directory / WEIGHTS_INDEX} names more than {MOST_FILES:,} files.", "Use another model.")
    missing = [name for name in names if not os.path.isfile(directory / name)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{directory} lacks {one_line(missing[0], 120)}{more}, of {len(names)} files of weights.",
            "Copy or fetch the missing files.",
        )
    return shards


def _no_weights(directory: Path) -> UserError:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        return unreadable(directory, error)
    if any(name.endswith(PICKLES) for name in names):
        return UserError(
            f"{directory} has its weights as pickles only, which run code when they are loaded.",
            "Use the safetensors version of the model, or convert it where you trust it.",
        )
    if WEIGHTS in names:  # a directory, or a dangling link
        return UserError(f"{directory / WEIGHTS} is not a file that is there.", "Copy or fetch the weights again.")
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return UserError(
            f"{directory} has no safetensors, but {one_line(ggufs[0], 120)}.",
            f"Set model.base to {one_line(str(directory / ggufs[0]), 200)}.",
        )
    return UserError(f"{directory} has no {WEIGHTS} or {WEIGHTS_INDEX}.", "Copy the model's weights into it.")

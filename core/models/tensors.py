"""The headers of safetensors files: names, types and shapes of the weights, without reading the weights.

The format: eight bytes with the length of the header (little endian), the header as JSON, then the tensors one behind
the other without gaps (https://github.com/huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.description import is_lfs_pointer, lfs_pointer, read_description, unreadable
from core.models.files import PICKLES, WEIGHTS, WEIGHTS_INDEX
from core.text import one_line

#: A longer header is refused by the readers of the format.
HEADER_LIMIT = 100_000_000
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header describes it.

    Args:
        dtype: In the format's names: ``BF16``, ``F16``, ``F32``, ``U8``.
        shape: Its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape)) or "one number"


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, which is seen to be as long as its header says.

    Raises:
        UserError: If it cannot be read, is damaged or cut short, or is a pointer of Git LFS.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise UserError(f"{path} is not a regular file.", "Copy the model's weights there.")
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if is_lfs_pointer(start + file.read(64)):
                raise lfs_pointer(path)
            room = facts.st_size - 8
            if not 2 <= length <= min(HEADER_LIMIT, room):
                raise _damaged(
                    path, "its header is longer than the file" if length > room else "its header is no header"
                )
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        found = {name: _tensor(entry) for name, entry in header.items()}
        spans = sorted((entry["data_offsets"][0], entry["data_offsets"][1]) for entry in header.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _damaged(path, "its header makes no sense") from error
    end = 0
    for begin, next_end in spans:
        if begin != end:
            raise _damaged(path, "its tensors do not lie one behind the other")
        end = next_end
    if end != room - length:
        what = "is cut short" if end > room - length else "has more bytes"
        raise UserError(
            f"{path} {what}: it has {facts.st_size:,} bytes and its header asks for {8 + length + end:,}.",
            "Copy or fetch it again.",
        )
    return found


def _tensor(entry: dict[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("a shape or place that is none")
    size = _BYTES.get(dtype)
    # Types of less than a byte, and those that are yet to come, are left to the library.
    if begin > end or (size is not None and end - begin != size * math.prod(shape)):
        raise ValueError("a tensor of another size than its shape says")
    return Tensor(dtype, shape)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}.", "Copy or fetch it again.")


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, every one that the index names.

    Raises:
        UserError: If there are none, or only pickles, or some are missing.
    """
    return sorted({directory / name for name in _index(directory).values()} or {directory / WEIGHTS})


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of a model, out of the headers of all its weight files.

    Raises:
        UserError: If a file is missing or damaged, or lacks what the index says is in it.
    """
    index = _index(directory)
    headers = {path.name: read_header(path) for path in weight_files(directory)}
    for tensor, name in index.items():
        if tensor not in headers[name]:
            raise UserError(
                f"{directory / name} lacks {one_line(tensor, 120)}, which {WEIGHTS_INDEX} says is in it.",
                "Copy index and weights from the same version of the model.",
            )
    return {name: tensor for header in headers.values() for name, tensor in header.items()}


def _index(directory: Path) -> dict[str, str]:
    """Tensors to the shards they are in; empty where the weights are in one file.

    Raises:
        UserError: As :func:`weight_files`.
    """
    if (directory / WEIGHTS).is_file():
        return {}
    index = read_description(directory / WEIGHTS_INDEX, 64 << 20)
    if index is None:
        raise _no_weights(directory)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()) or not shards:
        raise UserError(f"{directory / WEIGHTS_INDEX} is damaged: it names no weights.", "Copy it again.")
    names = sorted(set(shards.values()))
    if any(Path(name).name != name for name in names):
        raise UserError(f"{directory / WEIGHTS_INDEX} names files outside its directory.", "Do not use this model.")
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
    if WEIGHTS in names:  # a directory, or a link to what is not there
        return UserError(f"{directory / WEIGHTS} is not a file that is there.", "Copy or fetch the weights again.")
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return UserError(
            f"{directory} has no safetensors, but {one_line(ggufs[0], 120)}.",
            f"Set model.base to {one_line(str(directory / ggufs[0]), 200)}.",
        )
    return UserError(f"{directory} has no {WEIGHTS} or {WEIGHTS_INDEX}.", "Copy the model's weights into it.")

"""GGUF headers: metadata of the model and shapes of its tensors, and the checks of a file that need no weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from core.errors import UserError
from core.text import one_line

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: Limits above any valid header; beyond them the file is damaged. Vocabularies have up to 262,144 tokens, as
#: many scores and types, and twice as many merges; the library that reads them afterwards takes microseconds for each.
MOST_ENTRIES, MOST_TENSORS = 1 << 12, 1 << 16
MOST_STRINGS, MOST_NUMBERS = 1 << 21, 1 << 21
#: Longest string, and total length of all strings, in bytes; chat templates have some kilobytes.
LONGEST_TEXT, MOST_TEXT = 16 << 20, 64 << 20
#: Longest name of a tensor; llama.cpp accepts 63 bytes.
_LONGEST_NAME = 1024
_MOST_DIMENSIONS, _DEEPEST_ARRAY = 4, 2
_LARGEST_DIMENSION, _MOST_ELEMENTS = 1 << 48, 1 << 60
#: Largest plausible offset: no file has as many bytes.
_FARTHEST = 1 << 62
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_TABLES = tomli.loads(Path(__file__).with_name("gguf.toml").read_text(encoding="utf-8"))
#: Tensor types: the name, and the elements and the bytes of a block.
_TYPES: dict[int, tuple[str, int, int]] = {int(number): tuple(kind) for number, kind in _TABLES["types"].items()}
#: Elements and bytes of a block, by the name of a type.
BLOCKS = {name: (elements, size) for name, elements, size in _TYPES.values()}

_BLOCK = re.compile(r"(?:^|\.)blk\.(\d{1,9})\.")
_AGAIN = "Copy or fetch it again."
#: ``general.architecture`` to ``model_type``.
_FAMILIES: dict[str, str] = _TABLES["families"]


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as described in the header.

    Args:
        shape: Its dimensions, innermost first.
        kind: Number of its type.
        offset: Bytes from the beginning of the data.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int | None:
        """Bytes in the file; None for an unknown type."""
        if self.kind not in _TYPES:
            return None
        _, block, size = _TYPES[self.kind]
        return self.elements // block * size

    @property
    def type_name(self) -> str:
        """Name of its type: ``F16``, ``Q4_K``."""
        return _TYPES[self.kind][0] if self.kind in _TYPES else f"type {self.kind}"

    def __str__(self) -> str:
        return " x ".join(map(str, reversed(self.shape))) or "one number"


@dataclass(frozen=True)
class GgufHeader:
    """Content of a GGUF header: metadata, with arrays as their lengths; tensors by name; and the size of the data."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_bytes: int

    def config(self, where: str) -> dict[str, Any]:
        """Equivalent ``config.json`` content of the model.

        Raises:
            UserError: If its architecture is not supported.
        """
        name = self.metadata.get("general.architecture")
        family = _FAMILIES.get(name) if isinstance(name, str) else None
        if family is None:
            raise UserError(
                f"{where} is of the architecture {one_line(str(name), 60)}, whose memory cannot be planned.",
                f"Known are {', '.join(sorted(_FAMILIES))}.",
            )
        # The family's default may be outside the vocabulary, and is then refused.
        config: dict[str, Any] = {"model_type": family, "pad_token_id": None}
        for key, ours in _TABLES["keys"].items():
            value = self.metadata.get(f"{name}.{key}")
            if isinstance(value, int) and not isinstance(value, bool):
                config[ours] = value
        if family == "llama" and config.get("num_experts"):
            config |= {"model_type": "mixtral", "num_local_experts": config.pop("num_experts")}
        if family == "gpt2" and "intermediate_size" in config:
            config["n_inner"] = config.pop("intermediate_size")
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, int):
            config.setdefault("vocab_size", tokens)
        embedding = self.tensors.get("token_embd.weight")
        if embedding is not None and len(embedding.shape) == 2:
            config["vocab_size"] = embedding.shape[1]
        config["tie_word_embeddings"] = "output.weight" not in self.tensors
        return config


class _Reader:
    """Parser of a header; data beyond its limits raise ``ValueError``."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = len(MAGIC)
        self._strings, self._numbers = MOST_STRINGS, MOST_NUMBERS
        self._text = MOST_TEXT

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._data, self.at)
        self.at += struct.calcsize(code)
        return value

    def count(self, most: int) -> int:
        value = int(self.number("<Q"))
        if value > most:
            raise ValueError("too many entries")
        return value

    def text(self, longest: int = LONGEST_TEXT) -> str:
        length = self.count(longest)
        self._text -= length
        piece = self._data[self.at : self.at + length]
        if len(piece) < length or self._text < 0:
            raise ValueError("cut short, or too much of it")
        self.at += length
        return piece.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Read a metadata value; of an array only its length."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        return self.text() if kind == _STRING else self._skip_array(kind)

    def _skip_array(self, kind: int, depth: int = 0) -> int:
        if kind != _ARRAY or depth > _DEEPEST_ARRAY:
            raise ValueError("unknown type")
        inner, length = int(self.number("<I")), self.count(len(self._data))
        if inner in _SCALARS:
            self._numbers -= length
        else:
            # Nested arrays, which no known model has, are ten times slower to skip.
            self._strings -= length if inner == _STRING else 16 * length
        if min(self._numbers, self._strings) < 0:
            raise ValueError("too many entries")
        if inner in _SCALARS:
            self._skip(struct.calcsize(_SCALARS[inner]) * length)
            return length
        if inner == _STRING:
            self._skip_strings(length)
        else:
            for _ in range(length):
                self._skip_array(inner, depth + 1)
        return length

    def _skip_strings(self, count: int) -> None:
        # Hundreds of thousands of them: only the lengths are read.
        data, at, unpack = self._data, self.at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self.at = at
        self._skip(0)

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self._data):
            raise ValueError("cut short")


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        UserError: If the file cannot be read, is not GGUF of a supported version, or is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[: len(MAGIC)] != MAGIC:
                hint = "Give a GGUF file, or a directory with the model's config.json."
                if (path.parent / "config.json").is_file():
                    hint = f"Give the directory that it is in: {path.parent}."
                raise UserError(f"{path} is not a GGUF file.", hint)
            reader = _Reader(data)
            if (version := int(reader.number("<I"))) not in VERSIONS:
                raise UserError(f"{path} is GGUF of version {version}.", "Versions 2 and 3 are read; convert it again.")
            return _read(reader, len(data))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    except (ValueError, struct.error, IndexError, OverflowError) as error:
        raise UserError(f"{path} is damaged or cut short.", "Copy it again.") from error


def _read(reader: _Reader, size: int) -> GgufHeader:
    tensors, entries = reader.count(MOST_TENSORS), reader.count(MOST_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        name = reader.text()
        metadata[name] = reader.value(int(reader.number("<I")))
    found = dict(_read_tensor(reader) for _ in range(tensors))
    if len(found) < tensors:
        raise ValueError("a tensor is there twice")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise ValueError("an alignment that is none")
    begin = -(-reader.at // alignment) * alignment
    return GgufHeader(metadata, found, max(0, size - begin))


def _read_tensor(reader: _Reader) -> tuple[str, GgufTensor]:
    name, dimensions = reader.text(_LONGEST_NAME), int(reader.number("<I"))
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError("too many dimensions")
    shape = tuple(int(reader.number("<Q")) for _ in range(dimensions))
    tensor = GgufTensor(shape, int(reader.number("<I")), int(reader.number("<Q")))
    if not all(0 < size < _LARGEST_DIMENSION for size in shape) or tensor.elements >= _MOST_ELEMENTS:
        raise ValueError("a shape that is none")
    if tensor.offset > _FARTHEST:
        raise ValueError("a place that is none")
    return name, tensor


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

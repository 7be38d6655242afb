"""Weights of a model as its files describe them: names, dtypes and shapes, as stored and as decoded.

Nothing but headers is read. The format of safetensors: eight bytes with the length of the header (little endian), the
header as JSON, then the tensors one after the other without gaps
(https://github.com/huggingface/safetensors, README, "Format").

Quantized weights are grouped by their names: a weight is quantized if its scales are present. Lists of modules in
``quantization_config`` (``ignore``, ``modules_to_not_convert``, ``targets``) are not needed for that. The decoding is
in :mod:`core.worker.model.decode`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError
from core.models.description import (
    FETCH,
    PICKLES,
    WEIGHTS,
    WEIGHTS_INDEX,
    Quantization,
    config_groups,
    read_description,
    read_quantization,
    refused,
    unreadable,
)
from core.small_files import is_lfs_pointer, lfs_pointer, open_regular
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
                raise lfs_pointer(path, otherwise=FETCH)
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
    return (
        f"its header has more than {HEADER_LIMIT >> 20} MiB" if length > HEADER_LIMIT else "its header is not a header"
    )


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
            f"{directory / WEIGHTS_INDEX} names {one_line(other, 120)}, which is not a safetensors file.",
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


#: Format of a weight in parts; each has its decoder in :mod:`core.worker.model.decode`. ``mxfp4``: experts of gpt-oss,
#: transposed. ``scaled``: a number per element, times a scale. ``fp4``: two E2M1 numbers per byte. ``packed``: integers
#: of compressed-tensors. ``gptq``, ``awq``: theirs. ``bnb4``, ``bnb8``: bitsandbytes'.
Codec = Literal["mxfp4", "scaled", "fp4", "packed", "gptq", "awq", "bnb4", "bnb8"]


_FLOATS = frozenset(["F8_E4M3", "F8_E5M2"])
_SCALES = frozenset(["F32", "BF16", "F16", "U8", "F8_E8M0", "F8_E4M3"])
#: Scales of activations and of the cache, which are not used here.
_ACTIVATIONS = re.compile(
    r"(^|[._])(input|output|activation|q|k|v|kv|kv_cache|prob)_(global_)?(scale|zero_point)(_inv|_ub)?$"
)
_BLOCK = (128, 128)
_AGAIN = "Copy or fetch the weights again."
#: Largest ``quant_state`` of bitsandbytes; real ones have about a hundred bytes.
_STATE_LIMIT = 4096
_BNB_PART = re.compile(r"(.+)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)")
_BNB_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Encoded:
    """A weight that is stored in parts.

    Args:
        codec: Their format.
        tensor: The weight: dtype and shape once decoded.
        parts: Role to the part's name in the files. ``weight`` is the part with the elements; beside it, if there
            are any: ``scale``, ``zero_point``, ``g_idx`` (column to group), ``shape``, ``global_scale`` (scales are
                divided by it), ``scale_2`` (scales are multiplied by it), and bitsandbytes' parts by their own names.
        block: Rows and columns per scale; (0, 0) where the codec has no blocks.
        bits: Bits of an element.
        zero_offset: Added to stored zero points: 1 for GPTQ's first format.
    """

    codec: Codec
    tensor: Tensor
    parts: Mapping[str, str]
    block: tuple[int, int] = (0, 0)
    bits: int = 0
    zero_offset: int = 0


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a model as stored in its files, and as decoded.

    Args:
        stored: The tensors in the files, by their names.
        tensors: The decoded model's, by their names; the same if nothing is quantized or can be decoded.
        encoded: The tensors among ``tensors`` that are stored in parts.
    """

    stored: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    encoded: Mapping[str, Encoded] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Number of elements of the decoded tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())


def read_decoded(directory: Path, config: Mapping[str, Any] | None = None) -> StoredWeights:
    """Read the tensors of a model from the headers of all its weight files, as stored and as decoded.

    Args:
        directory: The model's.
        config: The content of its ``config.json``; None: it is read.

    Raises:
        UserError: As :func:`core.models.tensors.read_weights`, or if quantized weights lack parts or have parts that do
            not fit.
    """
    return decoded(directory, read_weights(directory), read_quantization(directory, config))


def decoded(directory: Path, stored: Mapping[str, Tensor], quantization: Quantization | None) -> StoredWeights:
    """The tensors of a model as decoded.

    Args:
        directory: The model's.
        stored: The tensors in its files.
        quantization: Their quantization; None for weights that are not quantized.

    Raises:
        UserError: If quantized weights lack parts or have parts that do not fit.
    """
    if quantization is None or not quantization.is_decoded:
        return StoredWeights(stored, stored)
    encoded = _Finder(directory, stored, quantization).find()
    parts = {part for weight in encoded.values() for part in weight.parts.values()}
    tensors = {name: weight.tensor for name, weight in encoded.items()}
    for name, tensor in stored.items():
        if name not in parts and not _ACTIVATIONS.search(name):
            tensors[name] = tensor
    return StoredWeights(stored, tensors, encoded)


@dataclass
class _Finder:
    """Finds the weights that are stored in parts.

    Args:
        directory: The model's.
        stored: The tensors in its files.
        quantization: Theirs.
        states: States of bitsandbytes' 4-bit weights by their names.
    """

    directory: Path
    stored: Mapping[str, Tensor]
    quantization: Quantization
    states: dict[str, dict[str, Any]] = field(default_factory=dict)

    def find(self) -> dict[str, Encoded]:
        """Every one by its name.

        Raises:
            UserError: If parts are missing or do not fit.
        """
        if self.quantization.method == "bitsandbytes":
            self.states = self._read_states()
        found: dict[str, Encoded] = {}
        for name, tensor in self.stored.items():
            if (result := self._look(name, tensor)) is not None:
                found[result[0]] = result[1]
        return found

    def _look(self, name: str, tensor: Tensor) -> tuple[str, Encoded] | None:
        """The weight whose elements are in this tensor, if it is stored in several parts."""
        stem, _, last = name.rpartition(".")
        if name.endswith("_blocks"):
            target = name.removesuffix("_blocks")
            return (target, self._mxfp4(name, tensor, target)) if f"{target}_scales" in self.stored else None
        if name.endswith("_packed"):
            target = name.removesuffix("_packed")
            return target, self._packed(name, tensor, target)
        if last == "qweight":
            is_gptq = self.quantization.method == "gptq"
            return f"{stem}.weight", (self._gptq if is_gptq else self._awq)(name, tensor, stem)
        if f"{name}.absmax" in self.stored:
            return name, self._bnb4(name)
        if f"{stem}.SCB" in self.stored and tensor.dtype == "I8":
            self._require(tensor, len(tensor.shape) == 2, name)
            parts = {"weight": name, "scale": f"{stem}.SCB"}
            if f"{stem}.weight_format" in self.stored:
                parts["format"] = f"{stem}.weight_format"
            return name, Encoded("bnb8", Tensor(self.quantization.dtype, tensor.shape), parts, bits=8)
        if f"{name}_scale_2" in self.stored and tensor.dtype == "U8":
            return name, self._fp4(name, tensor, name)
        scale = next((name + end for end in ("_scale_inv", "_scale") if name + end in self.stored), None)
        if scale is not None and tensor.dtype in {*_FLOATS, "I8"}:
            return name, self._scaled(name, tensor, scale)
        return None

    def _require(self, tensor: Tensor, fits: bool, name: str) -> None:
        """Check a condition on a part.

        Raises:
            UserError: If it does not hold.
        """
        if not fits:
            raise refused(
                self.directory,
                self.quantization.name,
                f"{one_line(name, 120)} is {tensor} of {one_line(tensor.dtype, 20)}, which does not fit its scales",
            )

    def _part(self, name: str, of: str) -> Tensor:
        """A required part.

        Raises:
            UserError: If it is not.
        """
        found = self.stored.get(name)
        if found is None:
            raise UserError(
                f"{self.directory} lacks {one_line(name, 120)}, without which {one_line(of, 120)} cannot be decoded.",
                _AGAIN,
            )
        return found

    def _beside(self, target: str, *roles: str) -> dict[str, str]:
        """The present parts beside a weight, by their roles."""
        return {role: name for role in roles if (name := f"{target}_{role}") in self.stored}

    def _mxfp4(self, name: str, blocks: Tensor, target: str) -> Encoded:
        scales = self.stored[f"{target}_scales"]
        self._require(blocks, blocks.dtype == "U8" and len(blocks.shape) == 4, name)
        experts, rows, groups, width = blocks.shape
        fits = scales.dtype in ("U8", "F8_E8M0") and scales.shape == (experts, rows, groups) and width > 0
        self._require(blocks, fits, name)
        # transformers has the experts of gpt-oss as inputs by outputs, the files as outputs by inputs.
        tensor = Tensor(self.quantization.dtype, (experts, 2 * width * groups, rows))
        return Encoded("mxfp4", tensor, {"weight": name, "scale": f"{target}_scales"}, (1, 2 * width), 4)

    def _scaled(self, name: str, tensor: Tensor, scale_name: str) -> Encoded:
        scale = self.stored[scale_name]
        block = _block(tensor.shape, scale.shape, self._blocks())
        self._require(tensor, block != (0, 0) and scale.dtype in _SCALES, name)
        parts = {"weight": name, "scale": scale_name, **self._beside(name, "zero_point", "g_idx")}
        return Encoded("scaled", Tensor(self.quantization.dtype, tensor.shape), parts, block, 8)

    def _blocks(self) -> list[tuple[int, int]]:
        """Block sizes from the configuration."""
        settings = self.quantization.settings
        structures = [_get(group.get("weights"), "block_structure") for group in config_groups(settings)]
        wanted = [settings.get("weight_block_size"), *structures, list(_BLOCK)]
        return [
            (size[0], size[1])
            for size in wanted
            if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        ]

    def _packed(self, name: str, tensor: Tensor, target: str) -> Encoded:
        if tensor.dtype != "I32":
            return self._fp4(name, tensor, target)
        scale = self._part(f"{target}_scale", target)
        self._require(tensor, len(tensor.shape) >= 2, name)
        groups = scale.shape[-1] if len(scale.shape) == len(tensor.shape) else 1
        fitting = set()
        for bits, size in self._integers():
            columns = tensor.shape[-1] * 32 // bits
            if groups == (-(-columns // size) if size else 1):
                fitting.add((bits, size or columns))
        self._require(tensor, len(fitting) == 1, name)
        bits, size = fitting.pop()
        columns = tensor.shape[-1] * 32 // bits
        parts = {"weight": name, "scale": f"{target}_scale", **self._beside(target, "zero_point", "g_idx", "shape")}
        decoded_tensor = Tensor(self.quantization.dtype, (*tensor.shape[:-1], columns))
        return Encoded("packed", decoded_tensor, parts, (1, size), bits)

    def _integers(self) -> set[tuple[int, int]]:
        """Bits and group sizes of packed integers from the configuration; group size 0 means whole rows."""
        weights = [group.get("weights") for group in config_groups(self.quantization.settings)]
        found = set()
        for value in weights:
            bits, size = _get(value, "num_bits"), _get(value, "group_size")
            # Other widths are packed across words, and versions differ in how.
            if bits in (2, 4, 8) and _get(value, "type") in ("int", None):
                found.add((bits, size if type(size) is int and size > 0 else 0))
        return found

    def _fp4(self, name: str, tensor: Tensor, target: str) -> Encoded:
        scale = self._part(f"{target}_scale", target)
        self._require(tensor, tensor.dtype == "U8" and len(tensor.shape) >= 2, name)
        columns = 2 * tensor.shape[-1]
        fits = scale.shape[:-1] == tensor.shape[:-1] and scale.shape[-1] > 0 and columns % scale.shape[-1] == 0
        self._require(tensor, fits and scale.dtype in _SCALES, name)
        parts = {"weight": name, "scale": f"{target}_scale", **self._beside(target, "global_scale", "scale_2")}
        # NVFP4 has a scale of the whole tensor as well; MXFP4's are powers of two by themselves.
        is_whole = scale.dtype in ("U8", "F8_E8M0") or len(parts) == 3
        self._require(tensor, is_whole, name)
        for role in ("global_scale", "scale_2"):
            if role in parts:
                self._require(tensor, self.stored[parts[role]].elements == 1, name)
        shape = (*tensor.shape[:-1], columns)
        return Encoded("fp4", Tensor(self.quantization.dtype, shape), parts, (1, columns // scale.shape[-1]), 4)

    def _gptq(self, name: str, tensor: Tensor, stem: str) -> Encoded:
        scales, zeros = (self._part(f"{stem}.{part}", stem) for part in ("scales", "qzeros"))
        index = self.stored.get(f"{stem}.g_idx")
        settings = self.quantization.settings
        bits = settings.get("bits", 4)
        if index is not None and index.elements and tensor.shape[:1] != (0,):
            # A module may have other bits than the rest.
            bits = 32 * tensor.shape[0] // index.elements
        self._require(tensor, bits in (2, 4, 8) and tensor.dtype == "I32" and len(tensor.shape) == 2, name)
        inputs, outputs = tensor.shape[0] * 32 // bits, tensor.shape[1]
        fits = len(scales.shape) == 2 and scales.shape[1] == outputs and scales.shape[0] > 0
        self._require(tensor, fits and zeros.shape == (scales.shape[0], outputs * bits // 32), name)
        self._require(tensor, index is None or index.shape == (inputs,), name)
        parts = {"weight": name, "scale": f"{stem}.scales", "zero_point": f"{stem}.qzeros"}
        if index is not None:
            parts["g_idx"] = f"{stem}.g_idx"
        return Encoded(
            "gptq",
            Tensor(self.quantization.dtype, (outputs, inputs)),
            parts,
            (1, -(-inputs // scales.shape[0])),
            bits,
            zero_offset=0 if settings.get("checkpoint_format") == "gptq_v2" else 1,
        )

    def _awq(self, name: str, tensor: Tensor, stem: str) -> Encoded:
        scales, zeros = (self._part(f"{stem}.{part}", stem) for part in ("scales", "qzeros"))
        self._require(tensor, tensor.dtype == "I32" and len(tensor.shape) == 2, name)
        inputs, outputs = tensor.shape[0], tensor.shape[1] * 8
        groups = scales.shape[0] if len(scales.shape) == 2 else 0
        fits = groups > 0 and inputs % groups == 0 and scales.shape[1] == outputs
        self._require(tensor, fits and zeros.shape == (groups, tensor.shape[1]), name)
        parts = {"weight": name, "scale": f"{stem}.scales", "zero_point": f"{stem}.qzeros"}
        decoded_tensor = Tensor(self.quantization.dtype, (outputs, inputs))
        return Encoded("awq", decoded_tensor, parts, (1, inputs // groups), 4)

    def _read_states(self) -> dict[str, dict[str, Any]]:
        """The states of bitsandbytes' 4-bit weights: shape, dtype and the names of their other parts.

        Raises:
            UserError: If one is invalid.
        """
        names = [name for name in self.stored if ".quant_state.bitsandbytes__" in name]
        if any(self.stored[name].elements > _STATE_LIMIT for name in names):
            raise UserError(f"{self.directory} has a damaged quant_state.", _AGAIN)
        found = {}
        for name, raw in read_values(self.directory, names).items():
            try:
                state = json.loads(raw)
                shape = tuple(state["shape"])
                if not all(type(side) is int and 0 < side < 1 << 32 for side in shape):
                    raise ValueError("a shape that is none")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{self.directory}: {one_line(name, 120)} makes no sense.", _AGAIN) from error
            found[name.partition(".quant_state.")[0]] = {"shape": shape, "dtype": state.get("dtype"), "parts": {}}
        for name in self.stored:
            match = _BNB_PART.fullmatch(name)
            if match is not None and match[1] in found:
                found[match[1]]["parts"][match[2]] = name
        return found

    def _bnb4(self, name: str) -> Encoded:
        state = self.states.get(name)
        if state is None:
            raise UserError(f"{self.directory} has no quant_state for {one_line(name, 120)}.", _AGAIN)
        parts = {"weight": name, **state["parts"]}
        stored = self.stored[name]
        self._require(stored, stored.dtype == "U8" and 2 * stored.elements >= math.prod(state["shape"]), name)
        dtype = _BNB_DTYPES.get(str(state["dtype"]), self.quantization.dtype)
        return Encoded("bnb4", Tensor(dtype, state["shape"]), parts, bits=4)


def _get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _block(shape: tuple[int, ...], scales: tuple[int, ...], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Rows and columns per scale; (0, 0) if the shapes do not fit.

    Args:
        shape: Shape of the weight; the last two dimensions are the matrix, earlier ones the experts.
        scales: Shape of its scales.
        sizes: Block size from the configuration: the last blocks of a row and a column may be cut off.
    """
    if len(shape) < 2 or 0 in shape or 0 in scales:
        return 0, 0
    before, (rows, columns) = shape[:-2], shape[-2:]
    if math.prod(scales) == math.prod(before) and scales[: len(before)] == before:
        return rows, columns
    if math.prod(scales) == 1:
        return rows, columns
    if scales == (*before, rows):
        return 1, columns
    if scales[:-2] != before or len(scales) != len(shape):
        return 0, 0
    down, across = scales[-2:]
    for height, width in sizes:
        if (down, across) == (-(-rows // height), -(-columns // width)):
            return height, width
    return (rows // down, columns // across) if rows % down == 0 and columns % across == 0 else (0, 0)

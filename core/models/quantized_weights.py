"""Stored format of quantized checkpoint weights, and the shapes and dtypes of the decoded weights.

Everything is read from ``quantization_config`` and from the names, dtypes and shapes in the headers, so that the plan
and the inspection know decoded weights without decoding one. The decoding is in :mod:`core.worker.model.decode`.

Tensors are grouped by their names: a weight is quantized if its scales are present. Lists of modules in
``quantization_config`` (``ignore``, ``modules_to_not_convert``, ``targets``) are not needed for that.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError
from core.models.quantization_config import Quantization, config_groups, read_quantization, refused
from core.models.tensors import Tensor, read_values, read_weights
from core.text import one_line

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

"""Quantized checkpoints made from 16-bit ones, by what the formats' specifications say, number by number in numpy.

Nothing of what decodes them is used here. Each packer gives the parts of a weight by the ends of their names, and the
weight that they stand for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.cases import tables

Array = np.ndarray[Any, np.dtype[Any]]
Packed = tuple[dict[str, torch.Tensor], Array]
#: OCP Microscaling Formats 1.0, 5.3.3: E2M1 by its code.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
_E4M3_MOST = 448.0


def _e4m3(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(torch.float8_e4m3fn)


def _blocks_of(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def fp8_blocks(weight: Array, size: int = 128, end: str = "weight_scale_inv") -> Packed:
    """FP8 as DeepSeek-V3 has it: a scale for each block of 128 by 128, smaller ones at the ends."""
    rows, columns = _blocks_of(weight.shape[0], size), _blocks_of(weight.shape[1], size)
    scales = np.zeros((len(rows), len(columns)), np.float32)
    stored = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
    meant = np.zeros_like(weight)
    for i, down in enumerate(rows):
        for j, across in enumerate(columns):
            scales[i, j] = np.abs(weight[down, across]).max() / _E4M3_MOST
            stored[down, across] = _e4m3(weight[down, across] / scales[i, j])
            meant[down, across] = stored[down, across].float().numpy() * scales[i, j]
    return {"weight": stored, end: torch.from_numpy(scales)}, meant


def fp8_rows(weight: Array) -> Packed:
    """FP8 with a scale for each row, as FBGEMM and compressed-tensors (``channel``) have it."""
    scales = (np.abs(weight).max(axis=1, keepdims=True) / _E4M3_MOST).astype(np.float32)
    stored = _e4m3(weight / scales)
    return {"weight": stored, "weight_scale": torch.from_numpy(scales)}, stored.float().numpy() * scales


def fp8_whole(weight: Array, end: str = "weight_scale_inv", activation: str = "activation_scale") -> Packed:
    """FP8 with one scale and a static one for activations, as Mistral's and NVIDIA's have it."""
    scale = np.float32(np.abs(weight).max() / _E4M3_MOST)
    stored = _e4m3(weight / scale)
    return {"weight": stored, end: torch.tensor(scale), activation: torch.tensor(0.5)}, stored.float().numpy() * scale


def _exponents(weight: Array, size: int, most: float) -> Array:
    """Powers of two, as exponents with 127 added, that bring blocks of a row into a range."""
    largest = np.abs(weight).reshape(weight.shape[0], -1, size).max(axis=2)
    found: Array = (np.ceil(np.log2(np.maximum(largest, 1e-30) / most)) + 127).astype(np.uint8)
    return found


def mxfp8(weight: Array, end: str = "weight_scale_inv") -> Packed:
    """MXFP8: E4M3 with an exponent for each 32 of a row."""
    exponents = _exponents(weight, 32, _E4M3_MOST)
    scales = np.repeat(2.0 ** (exponents.astype(float) - 127), 32, axis=1)
    stored = _e4m3(weight / scales)
    return {"weight": stored, end: torch.from_numpy(exponents)}, stored.float().numpy() * scales


def _e2m1_codes(values: Array) -> Array:
    found: Array = np.abs(values[..., None] - E2M1).argmin(axis=-1).astype(np.uint8)
    return found


def _in_bytes(codes: Array) -> torch.Tensor:
    return torch.from_numpy(codes[..., 0::2] | (codes[..., 1::2] << 4))


def mxfp4(weight: Array, packed: str = "weight_packed", scale: str = "weight_scale") -> Packed:
    """MXFP4: two E2M1 a byte, with an exponent for each 32 of a row."""
    exponents = _exponents(weight, 32, 6.0)
    scales = np.repeat(2.0 ** (exponents.astype(float) - 127), 32, axis=1)
    codes = _e2m1_codes(weight / scales)
    return {packed: _in_bytes(codes), scale: torch.from_numpy(exponents)}, E2M1[codes] * scales


def nvfp4(weight: Array, *, by_modelopt: bool) -> Packed:
    """NVFP4: two E2M1 a byte, an E4M3 scale for each 16 of a row, and one scale for all of them."""
    whole = np.float32(np.abs(weight).max() / (6 * _E4M3_MOST))
    largest = np.abs(weight).reshape(weight.shape[0], -1, 16).max(axis=2)
    scales = _e4m3(largest / 6 / whole)
    spread = np.repeat(scales.float().numpy() * whole, 16, axis=1)
    codes = _e2m1_codes(weight / np.where(spread == 0, 1, spread))
    if by_modelopt:
        parts = {"weight": _in_bytes(codes), "weight_scale": scales, "weight_scale_2": torch.tensor(whole)}
        parts["input_scale"] = torch.tensor(0.01)
    else:
        parts = {"weight_packed": _in_bytes(codes), "weight_scale": scales}
        parts |= {"weight_global_scale": torch.tensor([1 / whole]), "input_global_scale": torch.tensor([3.0])}
        spread = np.repeat(scales.float().numpy() / np.float32(1 / whole), 16, axis=1)
    return parts, E2M1[codes].astype(np.float32) * spread


def _in_words(numbers: Array, bits: int, axis: int) -> torch.Tensor:
    """Small numbers packed into 32-bit words along an axis, the first in the lowest bits; padded with zeros."""
    moved = np.moveaxis(numbers, axis, -1).astype(np.uint64)
    each = 32 // bits
    padded = np.zeros((*moved.shape[:-1], -(-moved.shape[-1] // each) * each), np.uint64)
    padded[..., : moved.shape[-1]] = moved
    words = np.zeros((*padded.shape[:-1], padded.shape[-1] // each), np.uint64)
    for place in range(each):
        words |= padded[..., place::each] << np.uint64(place * bits)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis)))


def _rounded(weight: Array, group: Array, bits: int, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Numbers from 0, scales and zero points of groups of columns (``group``: the one of each column), by rows."""
    count, most = int(group.max()) + 1, (1 << bits) - 1
    scales, zeros = np.zeros((weight.shape[0], count)), np.zeros((weight.shape[0], count), int)
    for number in range(count):
        part = weight[:, group == number]
        if symmetric:
            scales[:, number] = 2 * np.abs(part).max(axis=1) / most
            zeros[:, number] = 1 << (bits - 1)
        else:
            low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
            scales[:, number] = (high - low) / most
            zeros[:, number] = np.clip(np.round(-low / scales[:, number]), 1, most)
    scales = torch.from_numpy(scales).half().double().numpy()
    return np.clip(np.round(weight / scales[:, group]) + zeros[:, group], 0, most).astype(int), scales, zeros


def _groups(columns: int, size: int, *, shuffled: bool) -> Array:
    order = np.arange(columns) // (size or columns)
    return np.random.default_rng(5).permutation(order) if shuffled else order


def pack_quantized(weight: Array, bits: int, size: int, *, symmetric: bool = True, shuffled: bool = False) -> Packed:
    """``pack-quantized`` of compressed-tensors: words along the columns, signed with half their range added."""
    group = _groups(weight.shape[1], size, shuffled=shuffled)
    numbers, scales, zeros = _rounded(weight, group, bits, symmetric=symmetric)
    parts = {
        "weight_packed": _in_words(numbers, bits, 1),
        "weight_scale": torch.from_numpy(scales).to(torch.float16),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        parts["weight_zero_point"] = _in_words(zeros, bits, 0)
    if shuffled:
        parts["weight_g_idx"] = torch.from_numpy(group.astype(np.int32))
    return parts, (numbers - zeros[:, group]) * scales[:, group]


def int8_rows(weight: Array) -> Packed:
    """``int-quantized`` of compressed-tensors: plain ``int8`` with zero points and a scale for each row."""
    group = np.zeros(weight.shape[1], int)
    numbers, scales, zeros = _rounded(weight, group, 8, symmetric=False)
    parts = {
        "weight": torch.from_numpy((numbers - 128).astype(np.int8)),
        "weight_scale": torch.from_numpy(scales).to(torch.float16),
        "weight_zero_point": torch.from_numpy((zeros - 128).astype(np.int8)),
    }
    return parts, (numbers - zeros) * scales


def gptq(weight: Array, bits: int, size: int, *, offset: int, shuffled: bool = False) -> Packed:
    """GPTQ: words along the inputs, zero points along the outputs, stored less 1 in its first format."""
    group = _groups(weight.shape[1], size, shuffled=shuffled)
    numbers, scales, zeros = _rounded(weight, group, bits, symmetric=False)
    parts = {
        "qweight": _in_words(numbers.T, bits, 0),
        "qzeros": _in_words(zeros.T - offset, bits, 1),
        "scales": torch.from_numpy(scales.T.copy()).to(torch.float16),
        "g_idx": torch.from_numpy(group.astype(np.int32)),
    }
    return parts, (numbers - zeros[:, group]) * scales[:, group]


def awq(weight: Array, size: int) -> Packed:
    """AWQ, version GEMM: words along the outputs, of neighbors 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on."""
    group = _groups(weight.shape[1], size, shuffled=False)
    numbers, scales, zeros = _rounded(weight, group, 4, symmetric=False)

    def interleaved(values: Array) -> Array:
        return values.reshape(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(values), -1)

    parts = {
        "qweight": _in_words(interleaved(numbers.T), 4, 1),
        "qzeros": _in_words(interleaved(zeros.T), 4, 1),
        "scales": torch.from_numpy(scales.T.copy()).to(torch.float16),
    }
    return parts, (numbers - zeros[:, group]) * scales[:, group]


def bitsandbytes_4bit(weight: Array, kind: str) -> Packed:
    """NF4 or FP4, by bitsandbytes itself."""
    import bitsandbytes as bnb

    given = torch.from_numpy(weight).to(torch.bfloat16)
    packed, state = bnb.functional.quantize_4bit(given, quant_type=kind, compress_statistics=True)
    parts = {"weight": packed} | {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    return parts, bnb.functional.dequantize_4bit(packed, state).double().numpy()


def bitsandbytes_8bit(weight: Array) -> Packed:
    """LLM.int8()."""
    largest = np.abs(weight).max(axis=1).astype(np.float32)
    numbers = np.round(weight / largest[:, None] * 127).astype(np.int8)
    parts = {"weight": torch.from_numpy(numbers), "SCB": torch.from_numpy(largest)}
    parts["weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return parts, numbers * (largest[:, None].astype(float) / 127)


@dataclass(frozen=True)
class Format:
    """A format of quantized checkpoints.

    Args:
        pack: Packs a weight ``(outputs, inputs)``.
        settings: ``quantization_config``.
        name: Name of the quantization, as it is told.
    """

    pack: Callable[[Array], Packed]
    settings: dict[str, Any]
    name: str


def _read(name: str, settings: dict[str, Any], pack: str, arguments: Mapping[str, Any] | None = None) -> Format:
    return Format(partial(globals()[pack], **(arguments or {})), settings, name)


FORMATS = {key: _read(**entry) for key, entry in tables(__file__).items()}


@dataclass(frozen=True)
class Twins:
    """A quantized checkpoint, and the 16-bit one that it stands for."""

    quantized: Path
    plain: Path


def quantize_checkpoint(source: Path, target: Path, format_name: str) -> Twins:
    """Quantize the linear layers of a 16-bit checkpoint; head, embeddings, norms and routers stay as they are.

    Args:
        source: The checkpoint: one file of safetensors.
        target: A directory for both results.
        format_name: A key of :data:`FORMATS`, or ``mxfp4`` for the experts of gpt-oss.
    """
    if format_name == "mxfp4":
        return _quantize_gpt_oss(source, target)
    chosen = FORMATS[format_name]

    def pack(name: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor] | None:
        if tensor.ndim != 2 or ".layers." not in name or name.endswith(("norm.weight", "gate.weight", "router.weight")):
            return None
        parts, meant = chosen.pack(tensor.double().numpy())
        stem = name.removesuffix("weight")
        return {stem + end: part for end, part in parts.items()}, torch.from_numpy(meant).to(tensor.dtype)

    return _write(source, target, chosen.settings, pack)


def _quantize_gpt_oss(source: Path, target: Path) -> Twins:
    """The experts of a gpt-oss checkpoint in MXFP4, as published: ``(experts, outputs, inputs / 32, 16)``."""

    def pack(name: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor] | None:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return None
        blocks, scales, meant = [], [], []
        for expert in tensor.double().numpy():
            parts, values = mxfp4(np.ascontiguousarray(expert.T), "blocks", "scales")
            blocks.append(parts["blocks"].view(len(values), -1, 16))
            scales.append(parts["scales"])
            meant.append(torch.from_numpy(values.T.copy()))
        stored = {f"{name}_blocks": torch.stack(blocks), f"{name}_scales": torch.stack(scales)}
        return stored, torch.stack(meant).to(tensor.dtype)

    return _write(source, target, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, pack)


def _write(
    source: Path,
    target: Path,
    settings: dict[str, Any],
    pack: Callable[[str, torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor] | None],
) -> Twins:
    twins = Twins(target / "quantized", target / "plain")
    stored: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        found = pack(name, tensor)
        stored |= {name: tensor} if found is None else found[0]
        plain[name] = tensor if found is None else found[1]
    for directory, tensors in ((twins.quantized, stored), (twins.plain, plain)):
        shutil.copytree(source, directory)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (twins.quantized / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return twins

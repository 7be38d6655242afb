"""Quantization of a checkpoint as declared in ``quantization_config``, and whether it can be decoded.

The weights themselves are in :mod:`core.models.quantized_weights`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.hub_uri import is_hub_id
from core.models.description import read_description, text_part, walk
from core.models.tables import TABLES
from core.small_files import read_small
from core.text import one_line

_CARD, _CARD_LIMIT = "README.md", 1 << 20
_FRONT = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_BASE_MODEL = re.compile(r"^base_model:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?['\"]?([\w.-]+/[\w.-]+)", re.MULTILINE)
#: Suffixes that quantizers add to a model's name.
_SUFFIX = re.compile(
    r"([-_.](quantized|unsloth|bnb|GPTQ|AWQ|AQLM|HQQ|VPTQ|SpQR|QuIP|EXL[23]|AutoRound|quanto|torchao|NF4|w\d+a\d+|"
    r"(NV|MX)?FP[48]([-_](dynamic|static|block))?|int[2348]|[2348]-?bits?|g(32|64|128)))+$",
    re.IGNORECASE,
)


def find_counterpart(directory: Path) -> str:
    """The name of the unquantized model that a quantized one was made from; empty if unknown.

    Args:
        directory: The quantized model's: its card's ``base_model`` decides, then its name without a suffix like
            ``-FP8`` or ``-GPTQ-Int4``.

    Returns:
        ``Qwen/Qwen3-8B``, or ``the model as it was before, which may be named Qwen3-8B`` if it is a guess.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        front = _FRONT.match(read_small(directory / _CARD, _CARD_LIMIT).decode("utf-8"))
        named = _BASE_MODEL.search(front[1]) if front else None
        if named is not None and is_hub_id(named[1]):
            return one_line(named[1], 120)
    names = [_own_name(directory), _cached_name(directory), directory.name]
    for name in names:
        if name and (shorter := _SUFFIX.sub("", name)) != name and shorter:
            return f"the model as it was before, which may be named {one_line(shorter, 120)}"
    return ""


def _own_name(directory: Path) -> str:
    with contextlib.suppress(UserError):
        name = (read_description(directory / "config.json") or {}).get("_name_or_path")
        if isinstance(name, str) and is_hub_id(name):
            return name
    return ""


def _cached_name(directory: Path) -> str:
    """The hub id of a model in the Hugging Face cache: ``models--owner--name/snapshots/revision``."""
    place = directory.parent.parent.name
    return place.removeprefix("models--").replace("--", "/", 1) if place.startswith("models--") else ""


#: File that NVIDIA's Model Optimizer writes instead of a ``quantization_config`` in ``config.json``.
_MODELOPT = "hf_quant_config.json"
_NAMES = TABLES["quantizations"]
_DECODED = frozenset(["mxfp4", "mxfp8", "nvfp4", "fp8", "fbgemm_fp8", "gptq", "awq", "compressed-tensors", "modelopt"])
#: Formats of compressed-tensors that leave weights out (sparsity) or are laid out for a single kernel (Marlin).
_OTHER_FORMATS = frozenset(["marlin-24", "sparse-24-bitmask", "sparse-bitmask"])


@dataclass(frozen=True)
class Quantization:
    """The quantization of a checkpoint.

    Args:
        name: Its name in sentences: ``MXFP4``, ``bitsandbytes NF4``, ``compressed-tensors pack-quantized``.
        method: ``quant_method``.
        settings: The other content of ``quantization_config``.
        dtype: Dtype of the decoded weights, in the names of safetensors: ``BF16`` or ``F16``.
        refusal: The reason why it cannot be decoded; empty if it can.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    dtype: str
    refusal: str = ""

    @property
    def is_decoded(self) -> bool:
        """True if its weights can be decoded."""
        return not self.refusal

    def is_used_as_saved(self, method: str) -> bool:
        """True if a method trains on the saved weights directly, as QLoRA does on NF4.

        Args:
            method: As ``method.name``.
        """
        return self.name == "bitsandbytes NF4" and method == "qlora"


def read_quantization(directory: Path, config: Mapping[str, Any] | None = None) -> Quantization | None:
    """Read the quantization of a model's saved weights; None if they are not quantized.

    Args:
        directory: The model's.
        config: The content of its ``config.json``; None: it is read.

    Raises:
        UserError: If a description is damaged.
    """
    if config is None:
        config = read_description(directory / "config.json") or {}
    # In a composite model any part may have the key.
    found = (value for _, key, value in walk(config) if key == "quantization_config" and isinstance(value, Mapping))
    settings = next(found, None)
    if settings is None:
        written = (read_description(directory / _MODELOPT) or {}).get("quantization")
        if not isinstance(written, Mapping) or not written.get("quant_algo"):
            return None
        settings = {"quant_method": "modelopt", **written}
    method = str(settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else "unknown")).lower()
    part = text_part(dict(config))
    named = next((values.get(key) for values in (part, config) for key in ("dtype", "torch_dtype") if key in values), 0)
    return Quantization(
        name=_name(method, settings),
        method=method,
        settings=settings,
        dtype="F16" if named == "float16" else "BF16",
        refusal=_refusal(method, settings),
    )


def _name(method: str, settings: Mapping[str, Any]) -> str:
    if method == "bitsandbytes":
        if not settings.get("load_in_4bit"):
            return "bitsandbytes 8-bit"
        kind = str(settings.get("bnb_4bit_quant_type", "fp4"))
        return "bitsandbytes NF4" if kind == "nf4" else f"bitsandbytes 4-bit ({one_line(kind.upper(), 20)})"
    name = _NAMES.get(method) or one_line(method.upper(), 40)
    more = {"compressed-tensors": settings.get("format"), "modelopt": settings.get("quant_algo")}.get(method)
    return f"{name} {one_line(more, 40)}" if isinstance(more, str) else name


def _refusal(method: str, settings: Mapping[str, Any]) -> str:
    """The reason why a quantization cannot be decoded; empty if it can."""
    if method == "bitsandbytes":
        return ""
    if method not in _DECODED:
        return "it is not decoded"
    bits = settings.get("bits", settings.get("w_bit", 4))
    if method == "gptq":
        layout = settings.get("checkpoint_format", "gptq")
        if layout not in ("gptq", "gptq_v2"):
            return f"its checkpoint_format is {one_line(str(layout), 40)}"
        return "" if bits in (2, 4, 8) else f"it has {one_line(str(bits), 10)} bits"
    if method == "awq":
        layout = str(settings.get("version", "gemm")).lower()
        if layout != "gemm":
            return f"its version is {one_line(layout, 40)}"
        if settings.get("zero_point") is False:
            return "it has no zero points"
        return "" if bits == 4 else f"it has {one_line(str(bits), 10)} bits"
    if method == "compressed-tensors":
        sparsity = settings.get("sparsity_config")
        sparse = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else "dense"
        for layout in (settings.get("format"), sparse, *(group.get("format") for group in config_groups(settings))):
            if layout in _OTHER_FORMATS:
                return f"its format is {layout}"
    return ""


def config_groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ``config_groups`` of compressed-tensors."""
    groups = settings.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else ()
    return [group for group in found if isinstance(group, Mapping)]


def saved_quantization(directory: Path, config: Mapping[str, Any] | None = None) -> str | None:
    """Name of the quantization of the saved weights; None if they are not quantized.

    Raises:
        UserError: As :func:`read_quantization`.
    """
    found = read_quantization(directory, config)
    return found.name if found is not None else None


def check_quantization(directory: Path, config: Mapping[str, Any] | None = None) -> None:
    """Refuse weights saved in a quantization that cannot be decoded.

    Raises:
        UserError: If they are; it names the checkpoint to use instead, if the directory names it.
    """
    found = read_quantization(directory, config)
    if found is None or found.is_decoded:
        return
    raise refused(directory, found.name, found.refusal)


def refused(directory: Path, name: str, why: str) -> UserError:
    """The error for weights that cannot be decoded.

    Args:
        directory: The model's.
        name: Name of the quantization.
        why: The reason.
    """
    counterpart = find_counterpart(directory)
    take = f"Take {counterpart}" if counterpart else "Take the model as it was before it was quantized"
    return UserError(
        f"{directory} was saved quantized ({name}), which cannot be trained here: {why}.",
        f"{take}; method.name = qlora makes it 4-bit while loading.",
    )

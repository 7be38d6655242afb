"""Checks before a conversion: models that llama.cpp would compute differently are refused, with an alternative."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.export.gguf.tools import known_architectures
from core.export.request import CONVERTED, Quant
from core.models.architecture.architecture import Architecture
from core.models.architecture.measuring import load_architecture
from core.models.description import read_description, read_quantization, text_part
from core.models.sandboxed import check_model_directory
from core.models.tensors import Tensor, read_weights
from core.text import one_line

#: The module of llama.cpp's library, part of the extra.
LIBRARY = "llama_cpp_py_sync"
#: Its installation.
INSTALL = "pip install 'localtune-tui[export]'"
_MERGED = "Export merged instead."
#: Activation functions that llama.cpp fixes by model type, whatever the configuration says.
_SILU, _GELU_TANH = frozenset({"silu", "swish"}), frozenset({"gelu_pytorch_tanh", "gelu_new"})
_ACTIVATIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3", "olmo", "olmo2"),
            *("olmoe", "granite", "granitemoe", "smollm3", "cohere", "cohere2"),
        ),
        _SILU,
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), _GELU_TANH),
}
#: Number of layers of the size of Gemma 2 and 3 whose attention llama.cpp scales by the hidden size per head.
_LARGE_GEMMA = {"gemma2": 46, "gemma3_text": 62}
#: Period of layers with full attention among layers with a window, by model type.
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
#: By model type, whether llama.cpp always normalizes a token's expert weights, and transformers' default.
#: transformers never normalizes DeepSeek V2's, and llama.cpp does.
_NORMALIZED: dict[str, tuple[bool, bool]] = {
    "qwen3_moe": (True, False),
    "lfm2_moe": (True, True),
    "qwen2_moe": (False, False),
    "olmoe": (False, False),
    "deepseek_v2": (False, False),
}
#: Number of layers of the only size of EXAONE 4 with windows in llama.cpp.
_WINDOWED_EXAONE4 = 64
_EXPERT = re.compile(r"^(.*\.experts)\.\d+\.(.+)$")


@dataclass(frozen=True)
class Checked:
    """A model that can be converted to GGUF, judging by its files.

    Args:
        dtype: The widest type of its weights: ``F32``, ``F16`` or ``BF16``.
        elements: Its weights.
        largest: Elements of the largest resulting tensor; the experts of a layer become one.
        architecture: Its shapes; None if they are not known.
    """

    dtype: Quant
    elements: int
    largest: int
    architecture: Architecture | None = None


def has_library() -> bool:
    """True if llama.cpp's library is installed, which quantizes and reads GGUF files."""
    return importlib.util.find_spec(LIBRARY) is not None


def require_quantizer(quant: Quant) -> None:
    """Refuse a quantization that needs llama.cpp's library if that is not installed.

    Raises:
        UserError: If so.
    """
    if quant in CONVERTED or has_library():
        return
    raise UserError(
        f"{quant} is written by llama.cpp's quantizer, which is not installed.",
        f"{INSTALL} installs it; {', '.join(CONVERTED)} are written without it.",
    )


def check_model(model: Path, converter: Path) -> Checked:
    """Check that a model survives its conversion unchanged.

    Args:
        model: A directory of safetensors in 16 or 32 bit, with configuration and tokenizer.
        converter: The directory of llama.cpp's converter.

    Raises:
        UserError: If it is damaged, quantized, brings code, is of an architecture that the converter does not know,
            or computes something that llama.cpp does not.
    """
    check_model_directory(model)
    config = read_description(model / "config.json") or {}
    _check_architecture(config, converter)
    if read_quantization(model, config) is not None:
        raise UserError(
            f"{model} is quantized already, and only weights in 16 or 32 bit are converted.",
            "Export from the model as it was before, or merged.",
        )
    check_arithmetic(model)
    weights = read_weights(model)
    return Checked(
        dtype=_widest(weights, model),
        elements=sum(tensor.elements for tensor in weights.values()),
        largest=_largest(weights),
        architecture=_architecture(model),
    )


def check_arithmetic(model: Path) -> None:
    """Check that llama.cpp computes a model as its configuration says, which takes no time.

    Args:
        model: A directory with the configuration, of the model or of the base that it is trained from.

    Raises:
        UserError: If it computes something else.
    """
    config = text_part(read_description(model / "config.json") or {})
    _check_scale(config)
    _check_windows(config)
    _check_activation(config)
    _check_routing(config)


def _check_architecture(config: Mapping[str, Any], converter: Path) -> None:
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if name is None:
        raise UserError("The model's config.json names no architecture.", "Copy config.json from the base model.")
    if name not in known_architectures(converter):
        raise UserError(
            f"llama.cpp's converter does not know the architecture {one_line(name, 80)}.",
            f"{_MERGED} A newer llama.cpp may know it.",
        )


def _architecture(model: Path) -> Architecture | None:
    with contextlib.suppress(UserError):
        return load_architecture(model)
    return None


def _check_scale(config: Mapping[str, Any]) -> None:
    """Check Gemma's attention scale, which the configuration sets, and llama.cpp takes from the width of a head."""
    kind = config.get("model_type")
    scalar, width = config.get("query_pre_attn_scalar"), config.get("head_dim")
    if kind not in _LARGE_GEMMA or not isinstance(scalar, (int, float)) or not isinstance(width, int):
        return
    if config.get("num_hidden_layers") == _LARGE_GEMMA[str(kind)]:
        heads = config.get("num_attention_heads")
        hidden = config.get("hidden_size")
        width = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else width
    if not math.isclose(scalar, width):
        raise UserError(
            f"llama.cpp scales this model's attention by {width}, and its config.json has query_pre_attn_scalar = "
            f"{scalar:g}: the file would be another model.",
            _MERGED,
        )


def _check_windows(config: Mapping[str, Any]) -> None:
    """Check the layers with a window, which llama.cpp fixes by architecture."""
    kind, layers = str(config.get("model_type")), config.get("layer_types")
    every, windows = _FULL_EVERY.get(kind), ("sliding_attention", "full_attention")
    is_usual = True
    if every is not None and isinstance(layers, list):
        is_usual = layers == [windows[(number + 1) % every == 0] for number in range(len(layers))]
    if kind == "exaone4" and config.get("sliding_window"):
        is_usual = config.get("num_hidden_layers") == _WINDOWED_EXAONE4
    if not is_usual:
        raise UserError(
            f"This model of the type {one_line(kind, 40)} has attention windows in other layers than in llama.cpp: the "
            "file would be another model.",
            _MERGED,
        )


def _check_activation(config: Mapping[str, Any]) -> None:
    computed = _ACTIVATIONS.get(str(config.get("model_type")))
    name = config.get("hidden_activation") or config.get("hidden_act")
    if computed is None or not isinstance(name, str) or name in computed:
        return
    raise UserError(
        f"llama.cpp computes models of the type {config['model_type']} with {min(computed)}, and this one has the "
        f"activation {one_line(name, 40)}: the file would be another model.",
        _MERGED,
    )


def _check_routing(config: Mapping[str, Any]) -> None:
    """Check the normalization of expert weights, which llama.cpp fixes by architecture."""
    kind = str(config.get("model_type"))
    if kind not in _NORMALIZED:
        return
    computed, default = _NORMALIZED[kind]
    wanted = config.get("norm_topk_prob", default)
    if bool(wanted) is computed:
        return
    said = "has" if "norm_topk_prob" in config else "takes"
    raise UserError(
        f"llama.cpp {'always' if computed else 'never'} normalizes the weights of a token's experts in models of the "
        f"type {kind}, and this one {said} norm_topk_prob = {'true' if wanted else 'false'}: the file would be another "
        "model.",
        _MERGED,
    )


def _widest(weights: Mapping[str, Tensor], model: Path) -> Quant:
    found = {tensor.dtype for tensor in weights.values()}
    known: dict[str, Quant] = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
    strange = sorted(found - known.keys())
    if strange:
        raise UserError(
            f"{model} has weights of the type {one_line(strange[0], 40)}, and only 16 and 32 bit are converted.",
            "Export from the model as it was before it was quantized.",
        )
    # A few tensors in 32 bit, such as norms, stay so in any file.
    wide = {tensor.dtype for tensor in weights.values() if len(tensor.shape) > 1} or found
    return "F32" if "F32" in wide or len(wide) > 1 else known[wide.pop()]


def _largest(weights: Mapping[str, Tensor]) -> int:
    together: dict[str, int] = {}
    for name, tensor in weights.items():
        match = _EXPERT.match(name)
        key = f"{match[1]}.{match[2]}" if match else name
        together[key] = together.get(key, 0) + tensor.elements
    return max(together.values())

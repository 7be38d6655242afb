"""llama.cpp in an export's plan: its library, which quantizes and reads files, and the sizes of its GGUF files.

A K-quant is a mixture, in which some matrices have more bits than the others. Its blocks are of 256 weights of a row; a
matrix whose rows are no multiples of that falls back to a type with blocks of 32, which has more bits.

Source: ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` of llama.cpp (``src/llama-quant.cpp``). Their
special cases for models of 8 experts and of 80 layers, below a percent of the file, are left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from core.errors import UserError
from core.export.request import CONVERTED, Kind, Quant
from core.hardware.cpu import has_avx2
from core.models.architecture.architecture import Architecture, Layer
from core.models.architecture.gguf_header import BLOCKS

#: The module of llama.cpp's library, part of the extra.
LIBRARY = "llama_cpp_py_sync"


#: Its installation.
INSTALL = "pip install 'localtune-tui[export]'"


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


class NotVerifiedError(UserError):
    """The file cannot be verified on this machine, which says nothing about the file."""


def refuse_unreadable(kind: Kind) -> None:
    """Refuse an export that cannot be verified, before it is made.

    Raises:
        NotVerifiedError: If the reader of its kind is missing.
    """
    if kind not in ("gguf", "ollama"):
        return
    if not has_library():
        raise NotVerifiedError(
            "The file is not verified: llama.cpp's library is not installed.", f"Install it: {INSTALL}"
        )
    if not has_avx2():
        raise NotVerifiedError(
            "The file is not verified: llama.cpp's library needs a processor with AVX2.",
            "Verify it on another machine.",
        )


#: Bits of a weight with the scales of its block, by type; for mixtures the mean over models of some billion parameters.
MEAN_BITS: dict[Quant, float] = {
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K_M": 5.7,
    "Q4_K_M": 4.9,
    "Q4_0": 4.6,
}
#: The tensor type that most matrices of a mixture have, and that of those with more bits.
_MIXTURES: dict[Quant, str] = {"Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K"}
_FINER = "Q6_K"
#: Tensor types for rows that are not whole blocks.
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
#: Endings of the names of layers that become ``ffn_down``, and ``attn_v`` or ``attn_qkv``.
_DOWN = ("down_proj", "mlp.c_proj", "dense_4h_to_h")
_VALUES = ("v_proj", "attn.c_attn", "query_key_value")


def gguf_bytes(
    parameters: int,
    architecture: Architecture | None,
    quant: Quant,
    *,
    has_imatrix: bool = False,
    embeddings: str | None = None,
) -> int:
    """Bytes of the tensors of a model as a GGUF file.

    Args:
        parameters: Number of its parameters, for a model whose shapes are not known.
        architecture: Its shapes; None if they are not known.
        quant: The type of the file.
        has_imatrix: Whether the quantizer is given an importance matrix.
        embeddings: The tensor type of embeddings and head; by default the quantizer's choice.
    """
    if architecture is None:
        return int(parameters * MEAN_BITS[quant] / 8)
    usual, depth = _MIXTURES.get(quant, quant), architecture.depth
    finer = sum(_has_more_bits(number, depth) for number in range(depth)) if quant in _MIXTURES else 0
    size = 4 * architecture.other
    for layer in architecture.layers:
        in_fp32 = layer.other + sum(linear.outputs for linear in layer.linears if linear.bias)
        in_fp32 += 0 if layer.experts is None else layer.experts.count * layer.experts.hidden
        size += layer.count * 4 * in_fp32
        for name, width, elements in _matrices(layer):
            other, share = usual, 0
            if name.endswith((*_DOWN, *_VALUES)) and finer:
                other, share = _FINER, finer
            elif name.endswith(_DOWN) and quant == "Q4_0" and has_imatrix:
                other, share = "Q4_1", depth // 8
            # Of several kinds of layers, each has its share of the finer ones.
            count = round(layer.count * share / depth)
            size += count * _bytes(elements, width, other) + (layer.count - count) * _bytes(elements, width, usual)
    return size + _embedding_bytes(architecture, quant, embeddings)


def _embedding_bytes(architecture: Architecture, quant: Quant, embeddings: str | None) -> int:
    """Bytes of embeddings and head; embeddings that are the head as well have its type."""
    elements, width = architecture.vocabulary * architecture.hidden, architecture.hidden
    usual = _MIXTURES.get(quant, quant)
    head = usual if BLOCKS[usual][0] == 1 or usual == "Q8_0" else _FINER
    size = _bytes(elements, width, embeddings or head)
    size += 4 * architecture.vocabulary if architecture.head_bias else 0
    return size if architecture.tied else size + _bytes(elements, width, embeddings or usual)


def _matrices(layer: Layer) -> Iterator[tuple[str, int, int]]:
    """The matrices of a layer: name, row length, elements; all its experts are one matrix."""
    for linear in layer.linears:
        yield linear.name, linear.inputs, linear.weights
    if (experts := layer.experts) is not None:
        elements = experts.count * experts.hidden * experts.width
        yield "experts.gate_up_proj", experts.hidden, 2 * elements
        yield "experts.down_proj", experts.width, elements


def _has_more_bits(number: int, depth: int) -> bool:
    """True for layers with more bits: the first and last eighth, and every third layer between them."""
    return number < depth // 8 or number >= 7 * depth // 8 or (number - depth // 8) % 3 == 2


def _bytes(elements: int, width: int, kind: str) -> int:
    """Bytes of a matrix of a tensor type, or of its fallback type."""
    if width % BLOCKS[kind][0]:
        kind = _FALLBACKS.get(kind, "F16")
    if width % BLOCKS[kind][0]:
        kind = "F16"
    block, size = BLOCKS[kind]
    return elements // block * size

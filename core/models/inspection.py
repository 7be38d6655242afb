"""Model inspection from descriptions and headers: facts of a local model, and flaws that prevent training.

The files are untrusted: call it through :func:`core.models.sandboxed.inspect_model`.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.architecture.architecture import Architecture, Unmeasured, read_architecture, read_model
from core.models.architecture.gguf_header import GgufHeader, check_gguf, read_gguf_header
from core.models.check import check_model_config, check_model_directory
from core.models.description import (
    PICKLES,
    TOKENIZERS,
    WEIGHTS,
    check_quantization,
    read_description,
    saved_quantization,
)
from core.models.tables import TABLES
from core.models.tensors import read_decoded, weight_files
from core.text import one_line

#: Values of ``general.architecture`` that transformers reads from GGUF files, and that generate text.
READ_ARCHITECTURES = frozenset(TABLES["gguf_architectures"])
#: Tensor types that cannot be dequantized.
UNREAD_TYPES = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0"})
_MOST_POSITIONS = 1 << 40


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model; empty or None if something is unknown.

    Args:
        parameters: Number of parameters.
        dtype: The most common dtype or quantization of its weights: ``BF16``, ``Q4_K``, ``GPTQ``.
        bytes: Size of its weights on the disk.
        has_template: Whether it has a chat template.
        family: Its ``model_type``, or a GGUF file's architecture.
        positions: Its longest sequence, in tokens.
        architecture: Its architecture, for memory plans.
        unmeasured: The model to measure, if the tables do not know its family.
        quantization: Quantization of the saved weights, see
            :func:`core.models.description.saved_quantization`.
        is_incomplete: Whether files are missing, as after an interrupted download.
        flaw: The reason why it cannot be trained, in a sentence; empty if none is known.
        hint: The remedy.
    """

    parameters: int | None = None
    dtype: str = ""
    bytes: int | None = None
    has_template: bool = False
    family: str = ""
    positions: int | None = None
    architecture: Architecture | None = None
    unmeasured: Unmeasured | None = None
    quantization: str | None = None
    is_incomplete: bool = False
    flaw: str = ""
    hint: str = ""

    def flawed(self, error: UserError) -> ModelFacts:
        """The same with a flaw, unless it has one already."""
        return self if self.flaw else replace(self, flaw=error.message, hint=error.hint)


_STARTER = read_architecture(TABLES["starter"], "the starter model")
#: Facts of the starter model before it is prepared.
STARTER_FACTS = ModelFacts(
    parameters=_STARTER.parameters,
    dtype="BF16",
    has_template=True,
    family="llama",
    positions=_STARTER.positions,
    architecture=_STARTER,
)


def inspect_model(path: Path) -> ModelFacts:
    """Inspect a model; a damaged model has a flaw.

    Args:
        path: A directory in the format of transformers, or a GGUF file.
    """
    try:
        return _inspect_directory(path) if os.path.isdir(path) else _inspect_gguf(path)
    except UserError as error:
        return ModelFacts().flawed(error)


def _inspect_directory(directory: Path) -> ModelFacts:
    facts = ModelFacts()
    try:
        config = check_model_config(directory)
        facts = replace(facts, **_described(config, directory))
        if not any((directory / name).is_file() for name in TOKENIZERS) or _lacks_weights(directory):
            facts = replace(facts, is_incomplete=True)
        facts = _weighed(facts, directory, config)
        check_quantization(directory, config)
        check_model_directory(directory)
    except UserError as error:
        return facts.flawed(error)
    return facts


def _described(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Facts from the descriptions."""
    found: Architecture | Unmeasured | None = None
    with contextlib.suppress(UserError):
        found = read_model(directory)
    architecture = found if isinstance(found, Architecture) else None
    return {
        "family": one_line(str(config.get("model_type", "")), 40),
        "quantization": saved_quantization(directory, config),
        "architecture": architecture,
        "unmeasured": found if isinstance(found, Unmeasured) else None,
        "positions": _plausible(architecture.positions) if architecture is not None else None,
        "parameters": architecture.parameters if architecture is not None else None,
        "has_template": _has_template(directory),
    }


def _plausible(positions: object) -> int | None:
    """The number of positions, if it is plausible."""
    return positions if type(positions) is int and 0 < positions < _MOST_POSITIONS else None


def _has_template(directory: Path) -> bool:
    for name in ("chat_template.jinja", "chat_template.json"):
        if (directory / name).is_file():
            return True
    settings = read_description(directory / "tokenizer_config.json") or {}
    return bool(settings.get("chat_template"))


def _lacks_weights(directory: Path) -> bool:
    """True if weight files are missing, as after an interrupted download."""
    try:
        weight_files(directory)
    except UserError:
        names = os.listdir(directory)
        return not any(name.endswith((*PICKLES, ".gguf")) for name in names)
    index = directory / WEIGHTS
    return os.path.islink(index) and not index.is_file()


def _weighed(facts: ModelFacts, directory: Path, config: dict[str, Any]) -> ModelFacts:
    """Add the facts from the headers of the weights."""
    weights = read_decoded(directory, config)
    kinds: Counter[str] = Counter()
    for tensor in weights.stored.values():
        kinds[tensor.dtype] += tensor.elements
    dtype = facts.quantization or (kinds.most_common(1)[0][0] if kinds else "")
    size = sum(path.stat().st_size for path in weight_files(directory))
    # Quantized weights are packed: they show the number of parameters only if they can be decoded.
    count = None if facts.quantization and not weights.encoded else weights.elements
    parameters = facts.parameters if facts.parameters is not None else count
    # The name of the format says more than the name of the library.
    dtype = dtype.removeprefix("compressed-tensors ")
    return replace(facts, dtype=one_line(dtype, 20), bytes=size, parameters=parameters)


# GGUF files.


def _inspect_gguf(path: Path) -> ModelFacts:
    header = read_gguf_header(path)
    facts = _of_header(header, path)
    try:
        check_gguf(path)
        _check_readable(header, path)
    except UserError as error:
        return facts.flawed(error)
    return facts


def _of_header(header: GgufHeader, path: Path) -> ModelFacts:
    kinds: Counter[str] = Counter()
    for tensor in header.tensors.values():
        kinds[tensor.type_name] += tensor.elements
    try:
        architecture = read_architecture(header.config(str(path)), str(path))
    except UserError:
        architecture = None
    template = header.metadata.get("tokenizer.chat_template")
    name = header.metadata.get("general.architecture")
    positions = header.metadata.get(f"{name}.context_length")
    return ModelFacts(
        parameters=sum(kinds.values()) or None,
        dtype=kinds.most_common(1)[0][0] if kinds else "",
        bytes=path.stat().st_size,
        has_template=isinstance(template, str) and bool(template.strip()),
        family=one_line(name, 40) if isinstance(name, str) else "",
        positions=_plausible(positions),
        architecture=architecture,
    )


def _check_readable(header: GgufHeader, path: Path) -> None:
    """Check that transformers reads this architecture and these types from a GGUF file.

    Raises:
        UserError: If not.
    """
    name = header.metadata.get("general.architecture")
    if name not in READ_ARCHITECTURES:
        raise UserError(
            f"{path} is of the architecture {one_line(str(name), 40)}, which is not read from GGUF files.",
            "Use the safetensors version of the model.",
        )
    kinds = {tensor.type_name for tensor in header.tensors.values()}
    if unread := sorted(kinds & UNREAD_TYPES):
        raise UserError(
            f"{path} has weights of the type {unread[0]}, which cannot be dequantized.",
            "Use the file in another quantization.",
        )

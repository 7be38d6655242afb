"""Architecture loading: from a model's ``config.json``, or from a GGUF header.

A directory may hold nothing but ``config.json``; if the weights are present too, the number of parameters is exact.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.architecture.architecture import Architecture, Checkpoint
from core.models.architecture.families import UnknownFamilyError, read_architecture
from core.models.architecture.gguf_header import read_gguf_header
from core.models.architecture.measuring import Unmeasured, measure_architecture
from core.models.description import read_description
from core.models.find import find_model, missing_model, model_path
from core.models.tensors import Tensor, read_header
from core.text import one_line

_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}


def locate_model(name: str, relative_to: Path | None = None) -> Path:
    """The path of a model on this machine.

    Args:
        name: A directory, a GGUF file, a prepared model's name, or a hub id that is in the local Hugging Face cache.
        relative_to: Base of a relative path; the working directory by default.

    Raises:
        UserError: If it is not on this machine.
    """
    if os.path.exists(path := model_path(name, relative_to)):
        return path
    if (found := find_model(name, relative_to)) is not None:
        return found
    raise UserError(
        f"The model {one_line(name, 200)} is not on this machine, so its memory cannot be told.",
        f"{missing_model(name, relative_to).hint} For a plan, a directory with its config.json is enough.",
    )


def load_architecture(path: Path) -> Architecture:
    """Load the architecture of a model; blocks for seconds if its family has to be measured.

    Args:
        path: A directory with ``config.json``, or a GGUF file.

    Raises:
        UserError: If it is not a model, or its shape cannot be determined.
    """
    found = read_model(path)
    return complete(measure_architecture(found), path) if isinstance(found, Unmeasured) else found


def read_model(path: Path) -> Architecture | Unmeasured:
    """Read the architecture of a model, unless its family is to be measured.

    Args:
        path: As for :func:`load_architecture`.

    Raises:
        UserError: As that function.
    """
    if path.is_file():
        return read_architecture(read_gguf_header(path).config(str(path)), str(path))
    config_path = path / "config.json"
    config = _read_config(path, config_path)
    try:
        architecture = read_architecture(config, str(config_path))
    except UnknownFamilyError:
        return Unmeasured(json.dumps(config, sort_keys=True), str(config_path))
    return complete(architecture, path)


def complete(architecture: Architecture, path: Path) -> Architecture:
    """Add what the other files of a model's directory tell.

    Args:
        architecture: By its configuration.
        path: The directory.
    """
    if (tokenizer := path / "tokenizer.json").is_file():
        architecture = replace(architecture, tokenizer_bytes=tokenizer.stat().st_size)
    files = sorted(path.glob("*.safetensors"))
    try:
        tensors = [item for file in files for item in read_header(file).items()]
        return with_checkpoint(architecture, tensors, sum(file.stat().st_size for file in files))
    except (UserError, OSError):
        # Defects of the weights are reported when they are to be loaded.
        return architecture


def _read_config(directory: Path, path: Path) -> dict[str, Any]:
    config = read_description(path)
    if config is not None:
        return config
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory} holds an adapter, not a model.", "Give the model that the adapter was trained on."
        )
    raise UserError(
        f"{directory} has no config.json, so it is not a model.",
        "Give a directory with at least the model's config.json, or a GGUF file.",
    )


def with_checkpoint(architecture: Architecture, tensors: Iterable[tuple[str, Tensor]], size: int) -> Architecture:
    """Add the exact size of the weights to an architecture.

    Args:
        architecture: Architecture from the configuration.
        tensors: Every tensor by its name.
        size: Bytes of the files.

    Returns:
        The architecture with its ``checkpoint``; unchanged without tensors. Parameters that the configuration does not
        explain are added to those outside the layers.
    """
    total, largest, kinds = 0, 0, Counter[str]()
    names = set()
    for name, tensor in tensors:
        names.add(name)
        total += tensor.elements
        largest = max(largest, tensor.elements * _BYTES.get(tensor.dtype, 4))
        kinds[tensor.dtype] += tensor.elements
    if not total:
        return architecture
    checkpoint = Checkpoint(bytes=size, largest=largest, parameters=total, dtype=kinds.most_common(1)[0][0])
    if architecture.description:
        # Measured to the last parameter; further tensors are of parts that are not loaded.
        return replace(architecture, checkpoint=checkpoint)
    # A tied head may be saved nevertheless; it is one tensor in memory.
    saved_head = architecture.tied and any(name.endswith("lm_head.weight") for name in names)
    explained = architecture.parameters + (architecture.vocabulary * architecture.hidden if saved_head else 0)
    other = architecture.other + max(total - explained, 0)
    return replace(architecture, other=other, checkpoint=checkpoint)

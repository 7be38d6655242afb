"""Architecture loading: from a model's ``config.json``, or from a GGUF header.

A directory may hold nothing but ``config.json``; if the weights are present too, the number of parameters is exact.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.architecture.architecture import Architecture, Checkpoint, read_towers
from core.models.architecture.families import UnknownFamilyError, read_architecture
from core.models.architecture.gguf_header import read_gguf_header
from core.models.architecture.measuring import Unmeasured, measure_architecture
from core.models.description import read_description, refuse_foreign
from core.models.find import find_model, missing_model, model_path
from core.models.installed import check_known, missing_kernels
from core.models.quantization_config import read_quantization
from core.models.quantized_weights import decoded
from core.models.tensors import Tensor, read_header
from core.models.text_part import as_files_are_tied, split_names
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
        f"The model {one_line(name, 200)} is not on this machine, so its memory cannot be planned.",
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
    """Read the architecture of a model, unless its structure has to be measured.

    Args:
        path: As for :func:`load_architecture`.

    Raises:
        UserError: As that function; also if its description asks for code of others.
    """
    if path.is_file():
        return read_architecture(read_gguf_header(path).config(str(path)), str(path))
    config_path = path / "config.json"
    config = _read_config(path, config_path)
    files = _read_files(path, config)
    described = as_files_are_tied(config, files.tensors)
    # To be measured, the model is built from its description.
    refuse_foreign(config, config_path)
    try:
        architecture = read_architecture(described, str(config_path))
    except UnknownFamilyError:
        check_known(config, path)
        return Unmeasured(json.dumps(described, sort_keys=True), str(config_path))
    return _complete(architecture, path, config, files)


def complete(architecture: Architecture, path: Path) -> Architecture:
    """Add the facts from the other files of a model's directory.

    Args:
        architecture: By its configuration.
        path: The directory.
    """
    config = _read_config(path, path / "config.json")
    if isinstance(config.get("text_config"), dict):
        architecture = replace(architecture, towers=read_towers(config))
    return _complete(architecture, path, config, _read_files(path, config))


def _complete(architecture: Architecture, path: Path, config: dict[str, Any], files: _Files) -> Architecture:
    if (tokenizer := path / "tokenizer.json").is_file():
        architecture = replace(architecture, tokenizer_bytes=tokenizer.stat().st_size)
    architecture = replace(architecture, kernels=missing_kernels(config))
    return _with_checkpoint(architecture, files)


@dataclass(frozen=True)
class _Files:
    """Headers of the weight files: the tensors once decoded, the size of the files, and their quantization, if any.

    Decoded weights are no views of the file, whatever their dtype.
    """

    tensors: Mapping[str, Tensor]
    bytes: int
    quantization: str | None


def _read_files(path: Path, config: dict[str, Any]) -> _Files:
    files = sorted(path.glob("*.safetensors"))
    quantization = read_quantization(path, config)
    name = quantization.name if quantization is not None else None
    try:
        stored = {name: tensor for file in files for name, tensor in read_header(file).items()}
        tensors = decoded(path, stored, quantization).tensors
        return _Files(tensors, sum(file.stat().st_size for file in files), name)
    except (UserError, OSError):
        # Defects of the weights are reported when they are to be loaded.
        return _Files({}, 0, name)


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


def _with_checkpoint(architecture: Architecture, files: _Files) -> Architecture:
    """The architecture with its ``checkpoint``, of a composite model that of its text part, and with its towers
    counted; unchanged without tensors.
    """
    counted, size = dict(files.tensors), files.bytes
    if (towers := architecture.towers) is not None and counted:
        others = [counted.pop(name) for name in split_names(counted).others]
        left_out = sum(tensor.elements * _BYTES.get(tensor.dtype, 4) for tensor in others)
        architecture = replace(architecture, towers=replace(towers, bytes=left_out, is_exact=True))
        size -= left_out
    if not counted:
        return architecture
    kinds = Counter[str]()
    for tensor in counted.values():
        kinds[tensor.dtype] += tensor.elements
    largest = max(tensor.elements * _BYTES.get(tensor.dtype, 4) for tensor in counted.values())
    stored = files.quantization or kinds.most_common(1)[0][0]
    checkpoint = Checkpoint(bytes=size, largest=largest, parameters=kinds.total(), dtype=stored)
    return replace(architecture, checkpoint=checkpoint)

"""Models read and checked in the sandbox, for the app and the commands: descriptions and headers are untrusted.

Each function blocks, and raises the ``UserError`` of the function that it calls, or one if reading takes more memory or
time than any model's should.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from core.errors import UserError
from core.models import check, inspection
from core.models.architecture import architecture, gguf_header
from core.models.architecture.architecture import Architecture, Unmeasured
from core.models.architecture.measuring import measure_architecture, published_architecture
from core.models.description import check_quantization
from core.models.find import STARTER_NAME, find_model, missing_model, model_path
from core.models.inspection import ModelFacts
from core.models.installed import check_known
from core.models.published import Published
from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.text import one_line

_T = TypeVar("_T")


def _in_sandbox(function: Callable[[Path], _T], path: Path) -> _T:
    return sandboxed(function, _named(path), rights=reading(path))(path)


def _named(path: Path) -> str:
    return f"The model in {one_line(str(path))}"


def load_architecture(path: Path | Published) -> Architecture:
    """As :func:`core.models.architecture.measuring.load_architecture`, or of a published model; takes seconds if its
    family is measured."""
    if isinstance(path, Published):
        return published_architecture(path)
    found = read_model(path)
    if not isinstance(found, Unmeasured):
        return found
    return sandboxed(architecture.complete, _named(path), rights=reading(path))(measure_architecture(found), path)


def read_model(path: Path) -> Architecture | Unmeasured:
    """As :func:`core.models.architecture.architecture.read_model`, which measures nothing."""
    return _in_sandbox(architecture.read_model, path)


def check_model_directory(directory: Path) -> None:
    """As :func:`core.models.check.check_model_directory`."""
    _in_sandbox(_check_directory, directory)


def check_model_config(directory: Path) -> dict[str, Any]:
    """As :func:`core.models.check.check_model_config`; the installed transformers must know the architecture too."""
    return _in_sandbox(_check_config, directory)


def check_base(name: str, relative_to: Path | None = None) -> None:
    """Refuse a base model that is missing or, by its description or its header, cannot be trained.

    A model that is only not prepared yet is prepared by the worker, which also checks tokenizer and weights.

    Args:
        name: As ``model.base``.
        relative_to: The directory that a relative path starts from; the working directory by default.
    """
    path = model_path(name, relative_to)
    if os.path.isfile(path):
        check_gguf(path)
    elif (found := find_model(name, relative_to)) is not None:
        check_quantization(found, check_model_config(found))
    elif name != STARTER_NAME:
        raise missing_model(name, relative_to)


def check_gguf(path: Path) -> None:
    """As :func:`core.models.architecture.gguf_header.check_gguf`."""
    _in_sandbox(_check_gguf, path)


def inspect_model(path: Path) -> ModelFacts:
    """As :func:`core.models.inspection.inspect_model`; takes seconds if its family is measured. A model that cannot be
    read or built has a flaw."""
    try:
        facts = _in_sandbox(inspection.inspect_model, path)
        if facts.unmeasured is None or facts.flaw:
            return facts
    except UserError as error:
        return ModelFacts().flawed(error)
    try:
        found = load_architecture(path)
    except UserError as error:
        return facts.flawed(error)
    return replace(facts, architecture=found, parameters=found.parameters, positions=found.positions)


def _check_directory(directory: Path) -> None:
    check.check_model_directory(directory)


def _check_config(directory: Path) -> dict[str, Any]:
    config = check.check_model_config(directory)
    check_known(config, directory)
    return config


def _check_gguf(path: Path) -> None:
    gguf_header.check_gguf(path)

"""Models read and checked in the sandbox, for the app and the commands: descriptions and headers are untrusted."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.models.architecture.architecture import Architecture, Unmeasured
from core.models.architecture.measuring import measure_architecture
from core.models.description import check_quantization
from core.models.find import STARTER_NAME, find_model, missing_model, model_path
from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.text import one_line

if TYPE_CHECKING:
    from core.models.inspection import ModelFacts


def load_architecture(path: Path) -> Architecture:
    """Load an architecture; see :func:`core.models.architecture.measuring.load_architecture`. Blocks, for seconds if
    its family has to be measured.

    Raises:
        UserError: As that function, or if reading takes more memory or time than any model's should.
    """
    found = read_model(path)
    if not isinstance(found, Unmeasured):
        return found
    call = sandboxed(_complete, f"The model in {one_line(str(path))}", rights=reading(path))
    return call(measure_architecture(found), path)


def read_model(path: Path) -> Architecture | Unmeasured:
    """Read an architecture without measuring anything; see
    :func:`core.models.architecture.architecture.read_model`; blocks.

    Raises:
        UserError: As :func:`load_architecture`.
    """
    return sandboxed(_read, f"The model in {one_line(str(path))}", rights=reading(path))(path)


def check_model_directory(directory: Path) -> None:
    """Check a model directory; see :func:`core.models.check.check_model_directory`; blocks.

    Raises:
        UserError: As that function, or if reading takes more memory or time than any model's should.
    """
    sandboxed(_check_directory, f"The model in {one_line(str(directory))}", rights=reading(directory))(directory)


def check_model_config(directory: Path) -> dict[str, Any]:
    """Check a model's description; see :func:`core.models.check.check_model_config`; blocks.

    Raises:
        UserError: As :func:`check_model_directory`.
    """
    return sandboxed(_check_config, f"The model in {one_line(str(directory))}", rights=reading(directory))(directory)


def check_base(name: str, relative_to: Path | None = None) -> None:
    """Refuse a base model that is missing or, by its description or its header, cannot be trained; blocks.

    A model that is only not prepared yet is prepared by the worker, which also checks tokenizer and weights.

    Args:
        name: As ``model.base``.
        relative_to: The directory that a relative path starts from; the working directory by default.

    Raises:
        UserError: If so.
    """
    path = model_path(name, relative_to)
    if os.path.isfile(path):
        check_gguf(path)
    elif (found := find_model(name, relative_to)) is not None:
        check_quantization(found, check_model_config(found))
    elif name != STARTER_NAME:
        raise missing_model(name, relative_to)


def check_gguf(path: Path) -> None:
    """Check a GGUF file by its header; see :func:`core.models.architecture.gguf_header.check_gguf`; blocks.

    Raises:
        UserError: As :func:`check_model_directory`.
    """
    sandboxed(_check_gguf, f"The model in {one_line(str(path))}", rights=reading(path))(path)


def inspect_model(path: Path) -> ModelFacts:
    """Inspect a model; see :func:`core.models.inspection.inspect_model`. Blocks for seconds if its family has to be
    measured. A model that cannot be read or built has a flaw.
    """
    from core.models.inspection import ModelFacts
    from core.models.inspection import inspect_model as inspect

    try:
        facts = sandboxed(inspect, f"The model in {one_line(str(path))}", rights=reading(path))(path)
    except UserError as error:
        return ModelFacts().flawed(error)
    if facts.unmeasured is None or facts.flaw:
        return facts
    try:
        architecture = load_architecture(path)
    except UserError as error:
        return facts.flawed(error)
    return replace(
        facts, architecture=architecture, parameters=architecture.parameters, positions=architecture.positions
    )


def _check_directory(directory: Path) -> None:
    from core.models.check import check_model_directory as check

    check(directory)


def _check_config(directory: Path) -> dict[str, Any]:
    from core.models.check import check_model_config as check
    from core.models.installed import check_known

    config = check(directory)
    check_known(config, directory)
    return config


def _check_gguf(path: Path) -> None:
    from core.models.architecture.gguf_header import check_gguf as check

    check(path)


def _read(path: Path) -> Architecture | Unmeasured:
    from core.models.architecture.architecture import read_model as read

    return read(path)


def _complete(architecture: Architecture, path: Path) -> Architecture:
    from core.models.architecture.architecture import complete

    return complete(architecture, path)

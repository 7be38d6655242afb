"""Exported models to chat with: GGUF files, which are asked through llama.cpp, as others will ask them."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import paths
from core.chat.engine import ChatEngine, ModelSpec
from core.chat.request import Source
from core.errors import UserError
from core.runs.store import find_run
from core.runs.trained import TrainedModel, find_trained
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
    trained: TrainedModel | None = None
    """What it was made of; None where that is not known, or not there any more."""
    quant: str = ""
    """The type of its weights; empty where it is not told."""

    @property
    def template(self) -> str | None:
        """The chat template of the training, which that of the file is held against; None where it is not known."""
        return self.trained.template if self.trained is not None else None

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
    return _exported(file, record or {})


def exports_of(run: str) -> list[ExportedModel]:
    """The exports of a run in the home that can be asked: GGUF files, by their directories' names.

    Args:
        run: Its id.
    """
    found = []
    with contextlib.suppress(OSError):
        for directory in sorted(paths.exports_dir().iterdir()):
            record = None if directory.name.startswith(".") else _read_record(directory)
            if record is None or record.get("run") != run or _is_adapter(record):
                continue
            if (file := _gguf_file(directory)) is not None:
                found.append(_exported(file, record))
    return found


class ExportReaders:
    """Readers of exported files beside a session, a process for each file; started when it is first asked.

    ``cancel`` and ``close`` may be called from any thread.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._engines: dict[Source, ChatEngine] = {}
        self._is_closed = False

    def find(self, source: Source) -> ChatEngine | None:
        """The engine that has loaded the file that a source names; None where it names none.

        Raises:
            UserError: If the file cannot be loaded.
        """
        if not os.path.isabs(source) or (exported := find_exported(Path(source))) is None:
            return None
        with self._guard:
            if (known := self._engines.get(source)) is not None:
                return known
            engine = self._engines[source] = ChatEngine(READER)
            if self._is_closed:
                engine.close()
        try:
            engine.load(exported.spec, lambda _detail, _done, _total: None)
        except BaseException:
            with self._guard:
                self._engines.pop(source, None)
            engine.close()
            raise
        return engine

    def cancel(self) -> None:
        """Cancel their answers."""
        for engine in self._all():
            engine.cancel()

    def close(self) -> None:
        """End them."""
        self._is_closed = True
        for engine in self._all():
            engine.close()

    def _all(self) -> list[ChatEngine]:
        with self._guard:
            return list(self._engines.values())


def _exported(file: Path, record: dict[str, Any]) -> ExportedModel:
    quant = record.get("quant")
    return ExportedModel(file.absolute(), _trained(record), one_line(quant, 20) if isinstance(quant, str) else "")


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


def _is_adapter(record: dict[str, Any]) -> bool:
    """Whether an export is an adapter alone, which answers nothing without a file of its base."""
    return record.get("kind") == "gguf" and record.get("quant") is None


def _trained(record: dict[str, Any]) -> TrainedModel | None:
    """What an export was made of, if its run is still there."""
    run, step = record.get("run"), record.get("step")
    if not isinstance(run, str) or not run:
        return None
    try:
        return find_trained(find_run(run), step if type(step) is int else None)
    except UserError:
        return None

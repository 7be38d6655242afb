"""Exported models to chat with: GGUF files, through llama.cpp as other people will use them."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from core.chat.engine import ChatEngine, ModelSpec
from core.chat.request import Source
from core.errors import UserError
from core.export.result import ExportResult, list_exports, read_result
from core.runs.catalog.trained import TrainedModel, find_trained
from core.runs.record.store import find_run
from core.text import one_line

#: The module of the engine that reads GGUF files.
READER = "core.worker.export.llama"


@dataclass(frozen=True)
class ExportedModel:
    """A GGUF file."""

    path: Path
    trained: TrainedModel | None = None
    """The model that it was exported from; None if unknown, or gone."""
    quant: str = ""
    """The type of its weights; empty if unknown."""

    @property
    def template(self) -> str | None:
        """The chat template of the training, to compare with the file's; None if unknown."""
        return self.trained.template if self.trained is not None else None

    def engine(self) -> ChatEngine:
        """A reader for the file, not started yet."""
        spec = self.spec
        return ChatEngine(READER, [os.path.abspath(path) for path in (spec.base, spec.adapter, spec.template) if path])

    @property
    def spec(self) -> ModelSpec:
        """The file as its reader loads it."""
        name = one_line(self.path.name, 80)
        return ModelSpec(base=str(self.path), source_name=name, template=self.template)


def find_exported(path: Path, *, asked: bool = False) -> ExportedModel | None:
    """The GGUF file that a path stands for: an exported file, or the only one in the directory of an export.

    Args:
        path: A file or a directory.
        asked: Whether any GGUF file counts, not only an exported one: the user wants llama.cpp to read it.

    Returns:
        None for other files and directories.

    Raises:
        UserError: If one is asked for and it is none.
    """
    file = _gguf_file(path)
    export = None if file is None else read_result(file.parent)
    if file is None or (export is None and not asked):
        if asked:
            raise UserError(f"{one_line(str(path))} is no GGUF file, and has none in it.", "Name a GGUF file.")
        return None
    return _exported(file, export)


def exports_of(run: str) -> list[ExportedModel]:
    """The exports of a run in the home that can answer: GGUF files, by their directories' names.

    Args:
        run: Its id.
    """
    # An adapter alone, which has no type of weights, cannot answer without a file of its base.
    is_alone = ("gguf", None)
    exports = [each for each in list_exports(run) if (each.kind, each.quant) != is_alone and each.proof != "failed"]
    files = [(_gguf_file(export.path), export) for export in sorted(exports, key=lambda export: export.path)]
    return [_exported(file, export) for file, export in files if file is not None]


class ExportReaders:
    """Readers of exported files beside a session, a process per file; started with its first question.

    ``cancel`` and ``close`` may be called from any thread.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._engines: dict[Source, ChatEngine] = {}
        self._is_closed = False

    def find(self, source: Source) -> ChatEngine | None:
        """The engine that has loaded the file that a source names; None if it names none.

        Raises:
            UserError: If the file cannot be loaded.
        """
        if not os.path.isabs(source) or (exported := find_exported(Path(source))) is None:
            return None
        with self._guard:
            if (known := self._engines.get(source)) is not None and not known.is_hung:
                return known
            engine = self._engines[source] = exported.engine()
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


def _exported(file: Path, export: ExportResult | None) -> ExportedModel:
    if export is None:
        return ExportedModel(file.absolute())
    trained = None
    with contextlib.suppress(UserError):  # its run may be gone
        trained = find_trained(find_run(export.run), export.step)
    return ExportedModel(file.absolute(), trained, export.quant or "")


def _gguf_file(path: Path) -> Path | None:
    if os.path.isfile(path):
        return path if path.suffix == ".gguf" else None
    if not os.path.isdir(path) or read_result(path) is None:
        return None
    found = sorted(path.glob("*.gguf"))
    return found[0] if len(found) == 1 else None

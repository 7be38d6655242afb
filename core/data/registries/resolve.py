"""Dataset resolution: entries of ``data.train`` to files, directories, Hub datasets and registry entries."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.formats.mapping import ColumnMap
from core.data.registries.axolotl import read_axolotl
from core.data.registries.llama_factory import is_dataset_list, read_dataset_list, read_llama_factory
from core.data.registries.source import DataSource, hub_source, load_registry
from core.errors import UserError
from core.hub_uri import is_hub_entry, parse_dataset
from core.path_kind import YAML_SUFFIXES, refuse_kind
from core.small_files import hash_file
from core.text import one_line

if TYPE_CHECKING:
    from core.config.schema import DataSection


def resolve_source(reference: str, wanted: str = "auto", columns: Mapping[Any, str] | None = None) -> list[DataSource]:
    """Resolve an entry of ``data.train`` or ``data.eval`` to its sources.

    Args:
        reference: A data file; a directory of data files, optionally with ``#split``; ``hf://datasets/owner/name``, a
            Hub dataset that has been fetched (nothing is downloaded); ``dataset_info.json#name``, an entry of
            LLaMA-Factory's registry; ``datasets.yaml``, a list of its second generation, with ``#name`` for a single
            entry; ``config.yml``, an Axolotl configuration, with ``#2`` for its second dataset.
        wanted: Format of files and directories, or ``auto``; registry entries state their own.
        columns: Their columns by role.

    Raises:
        NotFetchedError: If it is a Hub dataset that is not on this machine.
        UserError: If a registry cannot be read, has no such entry, or the entry uses an unsupported option.
    """
    if is_hub_entry(reference):
        dataset = parse_dataset(reference)
        named = ColumnMap(columns) if columns is not None else None
        return [hub_source(dataset, DataSource(str(dataset), Path(), wanted, named))]
    path = Path(reference)
    # Not the methods of Path, which raise without permission: opening the file reports that better.
    if os.path.isfile(path) and path.suffix.lower() in YAML_SUFFIXES:
        return _read_yaml(path, "")
    file, mark, entry = reference.rpartition("#")
    if mark and not os.path.exists(path) and os.path.isfile(file):
        if Path(file).suffix.lower() in YAML_SUFFIXES:
            return _read_yaml(Path(file), entry)
        if Path(file).suffix.lower() == ".json":
            return [read_llama_factory(Path(file), entry)]
        raise UserError(
            f"{one_line(reference)}: a name behind # stands for an entry of dataset_info.json, of an Axolotl YAML, or "
            "for a split of a directory.",
            f"Name the file alone: {one_line(file)}.",
        )
    if path.name == "dataset_info.json" and os.path.isfile(path):
        registry = load_registry(path)
        listed = list(registry)[:12] if isinstance(registry, dict) else []
        names = ", ".join(one_line(str(name), 40) for name in listed)
        raise UserError(f"{one_line(reference)} is a registry of datasets: {names}.", "Name one, behind a #.")
    refuse_kind(path, "data")
    return [DataSource(reference, path, wanted, ColumnMap(columns) if columns is not None else None)]


def resolve_sources(
    references: str | list[str] | None, wanted: str = "auto", columns: Mapping[Any, str] | None = None
) -> list[list[DataSource]]:
    """Resolve each entry of ``data.train`` or ``data.eval`` to its sources, in order.

    Raises:
        UserError: As :func:`resolve_source`.
    """
    names = [references] if isinstance(references, str) else references or []
    return [resolve_source(name, wanted, columns) for name in names]


def flat_sources(
    references: str | list[str] | None, wanted: str = "auto", columns: Mapping[Any, str] | None = None
) -> list[DataSource]:
    """Sources of all entries of ``data.train`` or ``data.eval``, in order.

    Raises:
        UserError: As :func:`resolve_source`.
    """
    return list(itertools.chain.from_iterable(resolve_sources(references, wanted, columns)))


def single_source(reference: str, wanted: str = "auto", columns: Mapping[Any, str] | None = None) -> DataSource:
    """Resolve a reference to its only source.

    Raises:
        UserError: As :func:`resolve_source`, or if it has several sources.
    """
    found = resolve_source(reference, wanted, columns)
    if len(found) > 1:
        raise UserError(
            f"{one_line(reference)} names {len(found)} datasets.", f"Name one: {one_line(reference)}#1 is the first."
        )
    return found[0]


def training_sources(data: DataSection) -> list[tuple[list[DataSource], float]]:
    """Sources of each entry of ``data.train``, with its weight.

    Raises:
        UserError: As :func:`resolve_source`, if weights and entries differ in number, or if both ``data.eval`` and
            ``data.eval_share`` hold rows out.
    """
    groups = resolve_sources(data.train, data.format, data.columns)
    weights = weights_of(data.weights, len(groups))
    refuse_two_evals(data.eval_share, data.eval is not None)
    return list(zip(groups, weights, strict=True))


def weights_of(weights: Sequence[float] | None, entries: int) -> list[float]:
    """``data.weights``, one per entry of ``data.train``; all 1 by default.

    Raises:
        UserError: If weights and entries differ in number.
    """
    found = list(weights or [1.0] * entries)
    if len(found) != entries:
        raise UserError(
            f"data.weights has {len(found)} numbers and data.train {entries} entries.", "Give one for each entry."
        )
    return found


def refuse_two_evals(share: float, has_files: bool) -> None:
    """Refuse ``data.eval`` and ``data.eval_share`` together.

    Raises:
        UserError: If both are set.
    """
    if share and has_files:
        raise UserError("data.eval and data.eval_share both say what is held out.", "Remove one of the two.")


def _read_yaml(path: Path, entry: str) -> list[DataSource]:
    """Datasets of a YAML file: a list of LLaMA-Factory's second generation, or an Axolotl configuration."""
    values = load_registry(path)
    return read_dataset_list(path, values, entry) if is_dataset_list(values) else read_axolotl(path, entry, values)


#: Seconds between checks for a stop of the run.
_PATIENCE = 0.2


def _files_of(source: DataSource) -> Iterator[Path]:
    if source.files:
        yield from source.files
        return
    whole = source.path if os.path.exists(source.path) else Path(str(source.path).rpartition("#")[0])
    if not os.path.isdir(whole):
        yield whole
        return
    for directory, below, names in os.walk(whole):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(directory) / name for name in sorted(names) if not name.startswith("."))


def hash_data_files(data: DataSection) -> dict[str, str]:
    """SHA-256 of each file that rows are read from, by path; empty for a file that cannot be read.

    Of a directory, all files that are not hidden.

    Raises:
        UserError: If an entry cannot be resolved.
    """
    entries = (flat_sources(entry or None, data.format, data.columns) for entry in (data.train, data.eval))
    sources = itertools.chain.from_iterable(entries)
    files = [path for source in sources for path in _files_of(source)]
    files += [Path(data.corrections)] if data.corrections is not None else []
    found: dict[str, str] = {}
    for path in dict.fromkeys(files):
        try:
            found[str(path)] = hash_file(path)
        except OSError:
            found[str(path)] = ""
    return found


class DataHashes:
    """Hashes the data files of a run in a thread, while the model is loaded.

    Args:
        data: Section of the configuration that names the files.
    """

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._found: dict[str, str] = {}
        self._thread = threading.Thread(target=self._compute, name="data hashes", daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        try:
            self._found = hash_data_files(self._data)
        except UserError:
            self._found = {}

    def settle(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait for the hashes.

        Args:
            check: Called several times per second; may raise to abort.
        """
        while self._thread.is_alive():
            check()
            self._thread.join(_PATIENCE)

    @property
    def found(self) -> dict[str, str]:
        """SHA-256 by path; blocks until computed. Empty if an entry cannot be resolved any more."""
        self._thread.join()
        return self._found

"""What ``data.train`` may name: data files, directories, datasets of a hub, and entries of other tools' registries."""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.files.reader import all_rows, open_files, open_rows
from core.data.files.rows import Row, RowFile
from core.data.files.shared_rows import open_shared
from core.data.formats.detect import Detection, choose
from core.data.formats.mapping import ColumnMap
from core.errors import UserError
from core.hub.store import find_fetched
from core.hub_uri import HubEntry, is_hub_entry, parse_dataset
from core.sandbox.pool import sandboxed
from core.small_files import read_small
from core.text import one_line
from core.yaml_file import read_yaml

if TYPE_CHECKING:
    from core.config.schema import DataSection

#: Largest registry file read, in bytes.
REGISTRY_LIMIT = 4 << 20

_YAML = (".yml", ".yaml")


@dataclass(frozen=True)
class DataSource:
    """Rows to be read, and how.

    Args:
        name: What the configuration calls it.
        path: What :func:`~core.data.files.reader.open_rows` opens.
        format: How a row is read, or ``auto``.
        columns: The columns, where they are named.
        limit: The most rows used; None for all.
        files: Those of the directory ``path`` that are read; empty for what ``path`` says by itself.
        note: Which files they are, in a sentence.
    """

    name: str
    path: Path
    format: str = "auto"
    columns: ColumnMap | None = None
    limit: int | None = None
    files: tuple[Path, ...] = ()
    note: str = ""

    def open(self) -> RowFile:
        """Open it for pages; see :func:`~core.data.files.reader.open_rows`."""
        return open_files(self.path, self.files) if self.files else open_rows(self.path)

    def open_shared(self) -> RowFile:
        """Open it together with others in this process; see :mod:`core.data.files.shared_rows`."""
        return open_shared(self.path, self.files)

    def rows(self) -> Iterator[Row]:
        """All rows in order, as far as ``limit`` lets; see :func:`~core.data.files.reader.read_rows`."""
        with self.open() as file:
            yield from itertools.islice(all_rows(file), self.limit)

    def detect(self, rows: Iterable[Row], shown: str = "") -> Detection:
        """The format, from the first rows (see :func:`~core.data.formats.detect.choose`).

        ``shown`` is the name of the source in messages.
        """
        found = choose(rows, self.format, shown or one_line(self.name), self.columns)
        return replace(found, reason=f"{found.reason} {self.note}") if self.note else found


def resolve_source(
    reference: str,
    wanted: str = "auto",
    columns: Mapping[Any, str] | None = None,
) -> list[DataSource]:
    """What one entry of ``data.train`` or ``data.eval`` stands for.

    Args:
        reference: A data file; a directory of them, perhaps with ``#split``; ``hf://datasets/owner/name``, a dataset of
            a hub that has been fetched (the network is never asked); ``dataset_info.json#name``, an entry of
            LLaMA-Factory's registry; ``config.yml`` or ``config.yml#2``, the datasets of an Axolotl configuration, all
            or one of them counted from 1.
        wanted: The format of files and directories, or ``auto``; entries say their own.
        columns: Their columns, by part.

    Raises:
        NotFetchedError: If it is a dataset of a hub that is not on this machine.
        UserError: If a registry cannot be read, has no such entry, or the entry asks for what is not done here.
    """
    if is_hub_entry(reference):
        dataset = parse_dataset(reference)
        named = ColumnMap(columns) if columns is not None else None
        return [hub_source(dataset, DataSource(str(dataset), Path(), wanted, named))]
    # Imported here, as these modules build on this one.
    from core.data.registries.axolotl import read_axolotl
    from core.data.registries.llama_factory import read_llama_factory

    path = Path(reference)
    # Not the methods of paths, which raise where one may not look: whoever opens it says so in a sentence.
    if os.path.isfile(path) and path.suffix.lower() in _YAML:
        return read_axolotl(path, "")
    file, mark, entry = reference.rpartition("#")
    if mark and not os.path.exists(path) and os.path.isfile(file):
        registry = Path(file)
        if registry.suffix.lower() in _YAML:
            return read_axolotl(registry, entry)
        if registry.suffix.lower() == ".json":
            return [read_llama_factory(registry, entry)]
        raise UserError(
            f"{one_line(reference)}: a name behind # stands for an entry of dataset_info.json, of an Axolotl YAML, or "
            "for a split of a directory.",
            f"Name the file alone: {one_line(file)}.",
        )
    if path.name == "dataset_info.json" and os.path.isfile(path):
        names = ", ".join(list(_names(path))[:12])
        raise UserError(f"{one_line(reference)} is a registry of datasets: {names}.", "Name one, behind a #.")
    return [DataSource(reference, path, wanted, ColumnMap(columns) if columns is not None else None)]


def hub_source(entry: HubEntry, source: DataSource) -> DataSource:
    """A source with the files that an entry of a hub takes.

    Raises:
        NotFetchedError: If they are not on this machine.
        UserError: If it takes nothing that can be read.
    """
    fetched = find_fetched(entry)
    if len(fetched.files) == 1:
        return replace(source, path=fetched.files[0], note=fetched.reason)
    return replace(source, path=fetched.directory, files=fetched.files, note=fetched.reason)


def resolve_sources(
    references: str | list[str] | None,
    wanted: str = "auto",
    columns: Mapping[Any, str] | None = None,
) -> list[list[DataSource]]:
    """What each entry of ``data.train`` or ``data.eval`` stands for, in order.

    Raises:
        UserError: As :func:`resolve_source`.
    """
    names = [references] if isinstance(references, str) else references or []
    return [resolve_source(name, wanted, columns) for name in names]


def single_source(reference: str, wanted: str = "auto", columns: Mapping[Any, str] | None = None) -> DataSource:
    """What a reference stands for, where one set of rows is wanted, as for looking at it.

    Raises:
        UserError: As :func:`resolve_source`, or if it stands for several.
    """
    found = resolve_source(reference, wanted, columns)
    if len(found) > 1:
        raise UserError(
            f"{one_line(reference)} names {len(found)} datasets.", f"Name one: {one_line(reference)}#1 is the first."
        )
    return found[0]


def training_sources(data: DataSection) -> list[tuple[list[DataSource], float]]:
    """What is trained on, each entry of ``data.train`` with its weight.

    Raises:
        UserError: As :func:`resolve_source`, or if the weights are not as many as the entries, or rows are held out in
            two ways.
    """
    groups = resolve_sources(data.train, data.format, data.columns)
    weights = weights_of(data.weights, len(groups))
    refuse_two_evals(data.eval_share, data.eval is not None)
    return list(zip(groups, weights, strict=True))


def weights_of(weights: Sequence[float] | None, entries: int) -> list[float]:
    """``data.weights``, one for each entry of ``data.train``.

    Raises:
        UserError: If they are not as many.
    """
    found = list(weights or [1.0] * entries)
    if len(found) != entries:
        raise UserError(
            f"data.weights has {len(found)} numbers and data.train {entries} entries.", "Give one for each entry."
        )
    return found


def refuse_two_evals(share: float, has_files: bool) -> None:
    """Refuse rows that are held out in two ways.

    Raises:
        UserError: If they are.
    """
    if share and has_files:
        raise UserError("data.eval and data.eval_share both say what is held out.", "Remove one of the two.")


def load_registry(path: Path) -> Any:
    """A registry file, JSON or YAML, read in the sandbox; blocks.

    Raises:
        UserError: If it cannot be read.
    """
    if path.suffix.lower() in _YAML:
        return read_yaml(path).values
    return sandboxed(_load_json, one_line(str(path)))(path)


def _load_json(path: Path) -> Any:
    shown = one_line(str(path))
    try:
        return json.loads(read_small(path, REGISTRY_LIMIT).decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown} is not JSON: {one_line(str(error), 200)}.", "Mend it.") from error


def refuse_unknown_keys(where: str, given: Iterable[Any], known: Collection[str], meant: Mapping[str, str]) -> None:
    """Refuse a key that is none, and name the one that was meant.

    Raises:
        UserError: For the first one.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:40], known, n=1, cutoff=0.6)
            guess = meant.get(str(key)) or (near[0] if near else None)
            hint = f"Did you mean {guess}?" if guess else f"The keys are {', '.join(sorted(known))}."
            raise UserError(f"{where} has the unknown key {one_line(str(key), 40)}.", hint)


def _names(path: Path) -> Iterator[str]:
    registry = load_registry(path)
    yield from (one_line(str(name), 40) for name in registry) if isinstance(registry, dict) else ()

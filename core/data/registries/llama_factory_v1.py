"""LLaMA-Factory's second generation: datasets by name in a YAML file, each with its path and its converter."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.choices import ColumnRole, Format
from core.data.formats.mapping import ColumnMap
from core.data.registries.named_files import note_outside
from core.data.registries.source import DataSource, hub_source, refuse_unknown_keys
from core.errors import UserError
from core.hub_uri import make_entry
from core.text import one_line

_KEYS = {"path", "source", "split", "converter", "size", "weight", "streaming"}
_SOURCES = ("hf_hub", "local", "ms_hub")
_ALPACA: dict[ColumnRole, str] = {
    "user": "instruction",
    "context": "input",
    "assistant": "output",
    "system": "system",
}


@dataclass(frozen=True)
class _Reading:
    """Format and columns of rows."""

    format: Format | str
    columns: Mapping[ColumnRole, str] | None = None


#: Readings by the name of a converter; without one, rows have the standard columns.
_CONVERTERS: dict[str | None, _Reading] = {
    None: _Reading("auto"),
    "alpaca": _Reading("auto", _ALPACA),
    "sharegpt": _Reading("sharegpt"),
    "pair": _Reading("preference"),
}


def is_dataset_list(values: object) -> bool:
    """Whether a YAML file holds datasets of this kind: tables by name, each with a path."""
    return (
        isinstance(values, dict)
        and bool(values)
        and all(isinstance(entry, dict) and isinstance(entry.get("path"), str) for entry in values.values())
    )


def read_dataset_list(file: Path, values: Mapping[str, Any], name: str) -> list[DataSource]:
    """Read the datasets of a file.

    Args:
        file: The YAML file; paths in it are relative to its directory, or to the one above, as they are relative to
            where LLaMA-Factory is run.
        values: Its content.
        name: The dataset; empty for all.

    Raises:
        UserError: If there is no such dataset, it uses an unsupported option, or it names a file that it must not (see
            :func:`~core.data.registries.named_files.note_outside`).
    """
    shown = one_line(str(file))
    if name and name not in values:
        near = difflib.get_close_matches(name[:60], list(map(str, values)), n=1, cutoff=0.5)
        known = ", ".join(one_line(str(known), 40) for known in list(values)[:12])
        hint = f"Did you mean {one_line(near[0], 60)}?" if near else f"It has {known}."
        raise UserError(f"{shown} has no dataset {one_line(name, 60)}.", hint)
    return [_read(file, str(each), values[each]) for each in ([name] if name else values)]


def _read(file: Path, name: str, entry: Mapping[str, Any]) -> DataSource:
    where = f"{one_line(str(file))}#{one_line(name, 60)}"
    refuse_unknown_keys(where, entry, _KEYS, {"file_name": "path", "formatting": "converter", "format": "converter"})
    size, weight = entry.get("size"), entry.get("weight")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise UserError(f"{where}: size must be a whole number from 1 up.", "Fix it.")
    if weight not in (None, 1):
        raise UserError(f"{where} has a weight of its own.", "Remove it, and name the dataset in data.weights.")
    if not entry["path"].strip():
        # Beside the file it would be the directory, with all that lies there.
        raise UserError(f"{where} has an empty path.", "Name a file, a directory or a dataset of the hub.")
    source, split = entry.get("source", "hf_hub"), entry.get("split", "train")
    if source not in _SOURCES:
        raise UserError(f"{where} has the source {one_line(str(source), 40)}.", f"It may be {', '.join(_SOURCES)}.")
    if source == "ms_hub":
        raise UserError(f"{where} is fetched from the net (ms_hub).", "Download it, and set source: local.")
    reading = _reading(entry, where)
    columns = ColumnMap(reading.columns) if reading.columns is not None else None
    found = DataSource(f"{file}#{name}", Path(), reading.format, columns, size)
    if source == "local":
        return _local(file, entry["path"], split, found, where)
    try:
        return hub_source(make_entry(entry["path"], split=str(split)), found)
    except UserError as error:
        if type(error) is not UserError:
            raise  # not fetched: with the entry
        raise UserError(f"{where}: {error.message}", error.hint) from error


def _reading(entry: Mapping[str, Any], where: str) -> _Reading:
    converter = entry.get("converter")
    if (converter is not None and not isinstance(converter, str)) or converter not in _CONVERTERS:
        known = ", ".join(name for name in _CONVERTERS if name)
        raise UserError(f"{where} has the converter {one_line(str(converter), 40)}.", f"It may be {known}, or absent.")
    return _CONVERTERS[converter]


def _local(file: Path, path: str, split: object, source: DataSource, where: str) -> DataSource:
    if split != "train":
        raise UserError(f"{where} has the split {one_line(str(split), 40)}, and files have none.", "Remove it.")
    places = [file.parent / path, file.parent.parent / path]
    found = next((place for place in places if os.path.exists(place)), places[0])
    note = note_outside(file, found, where)
    return DataSource(source.name, found, source.format, source.columns, source.limit, note=note)

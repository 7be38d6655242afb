"""LLaMA-Factory datasets: entries of ``dataset_info.json``, and dataset lists (YAML) of its second generation."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli

from core.config.choices import ColumnRole
from core.data.formats.mapping import ColumnMap
from core.data.registries.source import DataSource, hub_source, load_registry, note_outside, refuse_unknown_keys
from core.errors import UserError
from core.hub.store import NotFetchedError
from core.hub_uri import HubEntry, make_entry
from core.text import one_line

_TABLES = tomli.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_COLUMNS: dict[str, ColumnRole] = _TABLES["columns"]
_MEDIA: dict[str, str] = _TABLES["media"]
#: Roles of the tags, with their defaults.
_TAGS: dict[str, tuple[ColumnRole, str]] = _TABLES["tags"]
_FORMATTINGS = ("alpaca", "sharegpt", "openai")
_SOURCES = ("hf_hub", "local", "ms_hub")
#: Format and columns of the converters of dataset lists.
_CONVERTERS: dict[str | None, tuple[str, dict[ColumnRole, str] | None]] = {
    None: ("auto", None),
    "alpaca": ("auto", _TABLES["list"]["alpaca"]),
    "sharegpt": ("sharegpt", None),
    "pair": ("preference", None),
}


def read_llama_factory(path: Path, name: str) -> DataSource:
    """Read an entry of ``dataset_info.json``.

    Args:
        path: The ``dataset_info.json``; ``file_name`` is relative to its directory.
        name: The entry.

    Raises:
        UserError: If there is no such entry, it uses an unsupported option, or it names a forbidden file (see
            :func:`~core.data.registries.source.note_outside`).
    """
    registry = load_registry(path)
    if not isinstance(registry, dict):
        raise UserError(f"{one_line(str(path))} is not an object of datasets.", "Check the path.")
    _refuse_missing(path, registry, name)
    where = f"{one_line(str(path))}#{one_line(name, 60)}"
    entry = registry[name]
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object.", 'Write {"file_name": "..."}.')
    refuse_unknown_keys(where, entry, [*_TABLES["remote"], *_TABLES["keys"]], _TABLES["meant"])
    samples = _count(entry, "num_samples", where)
    hub_entry = _hub_entry(entry, where) if entry.get("hf_hub_url") else None
    file = _local_file(path, entry, where) if hub_entry is None else path
    note = note_outside(path, file, where) if hub_entry is None else ""
    source = DataSource(f"{path}#{name}", file, "auto", _column_map(entry, where), samples, note=note)
    return source if hub_entry is None else hub_source(hub_entry, source)


def is_dataset_list(values: object) -> bool:
    """True if a YAML file is a dataset list of the second generation: tables by name, each with a path."""
    return (
        isinstance(values, dict)
        and bool(values)
        and all(isinstance(entry, dict) and isinstance(entry.get("path"), str) for entry in values.values())
    )


def read_dataset_list(file: Path, values: Mapping[str, Any], name: str) -> list[DataSource]:
    """Read the datasets of a list.

    Args:
        file: The YAML file; paths in it are relative to its directory or to the parent, where LLaMA-Factory may run.
        values: Its content.
        name: The dataset; empty for all.

    Raises:
        UserError: If there is no such dataset, it uses an unsupported option, or it names a forbidden file (see
            :func:`~core.data.registries.source.note_outside`).
    """
    if name:
        _refuse_missing(file, values, name)
    return [_read_listed(file, str(each), values[each]) for each in ([name] if name else values)]


def _read_listed(file: Path, name: str, entry: Mapping[str, Any]) -> DataSource:
    where = f"{one_line(str(file))}#{one_line(name, 60)}"
    refuse_unknown_keys(where, entry, _TABLES["list"]["keys"], _TABLES["list"]["meant"])
    size, path = _count(entry, "size", where), entry["path"]
    if entry.get("weight") not in (None, 1):
        raise UserError(f"{where} has a weight of its own.", "Remove it, and name the dataset in data.weights.")
    if not path.strip():
        # It would stand for the directory of the file.
        raise UserError(f"{where} has an empty path.", "Name a file, a directory or a dataset of the hub.")
    kind, split, converter = entry.get("source", "hf_hub"), entry.get("split", "train"), entry.get("converter")
    if kind not in _SOURCES:
        raise UserError(f"{where} has the source {one_line(str(kind), 40)}.", f"It may be {', '.join(_SOURCES)}.")
    if kind == "ms_hub":
        raise UserError(f"{where} is fetched from the net (ms_hub).", "Download it, and set source: local.")
    if (converter is not None and not isinstance(converter, str)) or converter not in _CONVERTERS:
        known = ", ".join(known for known in _CONVERTERS if known)
        raise UserError(f"{where} has the converter {one_line(str(converter), 40)}.", f"It may be {known}, or absent.")
    format_, columns = _CONVERTERS[converter]
    source = DataSource(f"{file}#{name}", Path(), format_, ColumnMap(columns) if columns else None, size)
    if kind != "local":
        try:
            return hub_source(make_entry(path, split=str(split)), source)
        except NotFetchedError:
            raise
        except UserError as error:
            raise UserError(f"{where}: {error.message}", error.hint) from error
    _refuse_split(split, where)
    places = [file.parent / path, file.parent.parent / path]
    found = next((place for place in places if os.path.exists(place)), places[0])
    return replace(source, path=found, note=note_outside(file, found, where))


def _refuse_missing(path: Path, registry: Mapping[Any, Any], name: str) -> None:
    if name not in registry:
        near = difflib.get_close_matches(name[:60], list(map(str, registry)), n=1, cutoff=0.5)
        known = ", ".join(one_line(str(known), 40) for known in list(registry)[:12])
        hint = f"Did you mean {one_line(near[0], 60)}?" if near else f"It has {known}."
        raise UserError(f"{one_line(str(path))} has no dataset {one_line(name, 60)}.", hint)


def _refuse_split(split: object, where: str) -> None:
    if split != "train":
        raise UserError(f"{where} has the split {one_line(str(split), 40)}, and files have none.", "Remove it.")


def _count(entry: Mapping[str, Any], key: str, where: str) -> int | None:
    """A number of rows, or None."""
    count = entry.get(key)
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise UserError(f"{where}: {key} must be a whole number from 1 up.", "Fix it.")
    return count


def _local_file(path: Path, entry: Mapping[str, Any], where: str) -> Path:
    """Path of the data file of a local entry."""
    if remote := next((key for key in _TABLES["remote"] if entry.get(key)), None):
        raise UserError(f"{where} is fetched from the net ({remote}).", "Download it, and give its path as file_name.")
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise UserError(f"{where} has no file_name.", "Add the path of its data file.")
    _refuse_split(entry.get("split", "train"), where)
    return path.parent / file_name


def _hub_entry(entry: Mapping[str, Any], where: str) -> HubEntry:
    """Hub dataset named by ``hf_hub_url`` and related keys."""
    try:
        about = {"path": entry.get("folder"), "subset": entry.get("subset"), "split": entry.get("split", "train")}
        return make_entry(str(entry["hf_hub_url"]), **about)
    except UserError as error:
        raise UserError(f"{where}: {error.message}", error.hint) from error


def _column_map(entry: Mapping[str, Any], where: str) -> ColumnMap:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in _FORMATTINGS:
        raise UserError(
            f"{where} has the formatting {one_line(str(formatting), 40)}.", f"It may be {', '.join(_FORMATTINGS)}."
        )
    columns = _texts(entry, "columns", {*_COLUMNS, *_MEDIA}, _TABLES["default_columns"], where)
    media = {column: _MEDIA[key] for key, column in columns.items() if key in _MEDIA}
    parts: dict[ColumnRole, str] = {_COLUMNS[key]: column for key, column in columns.items() if key in _COLUMNS}
    is_pair = bool(entry.get("ranking"))
    if is_pair and not {"chosen", "rejected"} <= parts.keys():
        raise UserError(f"{where} is ranked and its columns name no chosen and rejected.", "Add both to columns.")
    if not is_pair:
        parts.pop("chosen", None)
        parts.pop("rejected", None)
    if formatting == "alpaca":
        parts.pop("messages", None)
        if is_pair:
            parts.pop("assistant", None)
        elif set(parts) == {"user"}:
            # Continued pre-training: the prompt column is the text.
            parts = {"text": parts["user"]}
    else:
        for part in ("user", "context", "assistant", "history"):
            parts.pop(part, None)
        if "messages" not in parts:
            raise UserError(f"{where} is {formatting} and its columns name no messages.", "Add messages to columns.")
        defaults = {key: tag for key, (_, tag) in _TAGS.items()} if formatting == "sharegpt" else {}
        tags = _texts(entry, "tags", set(_TAGS), defaults, where)
        parts |= {_TAGS[key][0]: tag for key, tag in tags.items()}
    try:
        return ColumnMap(parts, media=media)
    except UserError as error:
        raise UserError(f"{where}: {error.message.replace('data.columns', 'columns')}", "Fix its columns.") from error


def _texts(entry: Mapping[str, Any], key: str, known: set[str], default: dict[str, str], where: str) -> dict[str, str]:
    """A table of an entry, without null values."""
    if entry.get(key) is None:
        return default
    table = entry[key]
    if not isinstance(table, dict):
        raise UserError(f"{where}: {key} is not an object.", "Write names as keys and columns as values.")
    refuse_unknown_keys(f"{where}: {key}", table, known, {})
    given = {name: value for name, value in table.items() if value is not None}
    if wrong := next((name for name, value in given.items() if not isinstance(value, str) or not value), None):
        raise UserError(f"{where}: {key}.{wrong} is not text.", "Give the name of a column.")
    return given

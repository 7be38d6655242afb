"""Axolotl datasets: the ``datasets`` entries of an Axolotl configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.data.files.shards import list_shards
from core.data.formats.mapping import ColumnMap
from core.data.registries.axolotl_chat import FIXED, read_chat
from core.data.registries.axolotl_types import read_table, read_type, type_keys
from core.data.registries.named_files import note_outside
from core.data.registries.source import DataSource, hub_source, refuse_unknown_keys
from core.errors import UserError
from core.hub_uri import HubEntry, is_hub_entry, is_hub_id, make_entry, parse_dataset
from core.paths import user_path
from core.text import one_line

#: Supported keys of an entry.
KEYS = {
    *("path", "type", "split", "name", "data_files", "data_dir", "ds_type", "field", "shards", "shards_idx"),
    *("revision", "field_system", "template_thinking_key"),
    *("trust_remote_code", "chat_template", "chat_template_jinja", "field_messages", "field_tools", "field_thinking"),
    *("message_property_mappings", "message_field_training", "message_field_training_detail", "roles_to_train"),
    *("train_on_eos", "train_on_eot", "roles", "drop_system_message", "split_thinking", "message_field_role"),
    *("message_field_content", "conversation", "field_human", "field_model", "preprocess_shards", "strict"),
    # These do not affect rows of the supported types.
    *("input_transform", "input_format", "logprobs_field", "temperature"),
}
# Keys that change the training and have no counterpart in an entry here: only these values are accepted.
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "shards": ((None, 0, 1), "Write the rows that are wanted to a file of their own"),
    "shards_idx": ((None, 0), "Write the rows that are wanted to a file of their own"),
    **FIXED,
}
_LOADERS = ("json", "csv", "parquet", "arrow", "text")


def read_axolotl(path: Path, entry: str, config: Any) -> list[DataSource]:
    """Read the entries of ``datasets``.

    Args:
        path: The YAML file; paths in it are relative to its directory.
        entry: Number of the entry, from 1, or its path; empty for all.
        config: The content of the file.

    Raises:
        UserError: If there is no such entry, it uses an unsupported option, or it names a file that it must not (see
            :func:`~core.data.registries.named_files.note_outside`).
    """
    shown = one_line(str(path))
    entries = config.get("datasets") if isinstance(config, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{shown} has no list of datasets.", "Name an Axolotl configuration, or a data file.")
    numbers = list(range(1, len(entries) + 1))
    if entry:
        names = [str(item.get("path")) if isinstance(item, dict) else "" for item in entries]
        numbers = [number for number in numbers if entry in (str(number), names[number - 1])]
        if not numbers:
            raise UserError(
                f"{shown} has no dataset {one_line(entry, 60)}.", f"It has {len(entries)}; #1 is the first."
            )
    return [source for number in numbers for source in _read_entry(path, number, entries[number - 1])]


def _read_entry(file: Path, number: int, entry: Any) -> list[DataSource]:
    where = f"{one_line(str(file))}#{number}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is no table.", "Write path and type.")
    format_, columns = entry_reading(entry, where)
    source = DataSource(f"{file}#{number}", file, format_, columns)
    path = entry.get("path")
    # A local path takes precedence over the hub.
    is_here = isinstance(path, str) and os.path.exists(file.parent / path)
    if not is_here and (entries := hub_entries(entry, where)) is not None:
        return [hub_source(item, source) for item in entries]
    return [replace(source, path=path, note=note) for path, note in _paths(file, entry, where)]


def entry_reading(entry: Mapping[str, Any], where: str) -> tuple[str, ColumnMap | None]:
    """Format of an entry's rows, and its column mapping if it names columns.

    Args:
        entry: The entry; its paths are not checked.
        where: Name of the entry in messages.

    Raises:
        UserError: If it has an unknown key, or uses an unsupported option.
    """
    refuse_unknown_keys(where, entry, KEYS, {"format": "type", "file": "path"})
    for key, (allowed, hint) in _FIXED.items():
        if entry.get(key) not in allowed:
            value = one_line(str(entry[key]), 40)
            raise UserError(f"{where} has {key}: {value}, which is not done here.", f"{hint}.")
    return _reading(entry, where)


def hub_entries(entry: Mapping[str, Any], where: str) -> list[HubEntry] | None:
    """Hub datasets of an entry; None if its path is not of the form ``owner/name``.

    Args:
        entry: The entry; a local directory of that name is not checked for.
        where: Name of the entry in messages.

    Raises:
        UserError: If it selects a part of a split, or names no files.
    """
    path = entry.get("path")
    if not isinstance(path, str) or not (is_hub_id(path) or is_hub_entry(path)):
        return None
    try:
        if is_hub_entry(path):
            return [parse_dataset(path)]
        about = {"revision": entry.get("revision"), "subset": entry.get("name"), "split": entry.get("split") or "train"}
        files = _listed(entry, where)
        if not files:
            return [make_entry(path, path=entry.get("data_dir"), **about)]
        return [make_entry(path, path=name, revision=entry.get("revision")) for name in files]
    except UserError as error:
        raise UserError(f"{where}: {error.message}", error.hint) from error


def _listed(entry: Mapping[str, Any], where: str) -> list[str]:
    """``data_files`` of an entry as a list."""
    listed = entry.get("data_files")
    names = [listed] if isinstance(listed, str) else listed or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{where}: data_files is no path and no list of paths.", "Fix it.")
    return names


def _paths(file: Path, entry: Mapping[str, Any], where: str) -> list[tuple[Path, str]]:
    """Files of an entry, each with a remark on its location."""
    path, split = entry.get("path"), entry.get("split")
    if not isinstance(path, str) or not path:
        raise UserError(f"{where} has no path.", "Add the path of its data file.")
    if split is not None and (not isinstance(split, str) or set("[/") & set(split)):
        raise UserError(f"{where} has the split {one_line(str(split), 40)}, a part of one.", "Name a whole split.")
    names = _listed(entry, where)
    base = file.parent if path in _LOADERS and names else file.parent / user_path(path)
    if not os.path.exists(base):
        raise UserError(
            f"{where}: there is nothing at {one_line(str(base))}.",
            "Paths are relative to the file; a dataset of the Hub is owner/name.",
        )
    if names:
        return [(base / name, note_outside(file, base / name, where)) for name in names]
    note = note_outside(file, base, where)
    return [(base.with_name(f"{base.name}#{split}") if split and base.name and _has_split(base, split) else base, note)]


def _has_split(directory: Path, split: str) -> bool:
    try:
        return directory.is_dir() and bool(list_shards(directory, split))
    except UserError:
        return False


def _reading(entry: Mapping[str, Any], where: str) -> tuple[str, ColumnMap | None]:
    kind = entry.get("type")
    if kind is None or kind == "":
        return "tokens", None
    if isinstance(kind, dict):
        return "auto", read_table(kind, where, _refuse_type_keys)
    if not isinstance(kind, str):
        raise UserError(f"{where} has a type that is no name.", "Write, for example, type: alpaca.")
    if kind.partition(":")[0] == "chat_template":
        return "auto", read_chat(entry, where)
    return read_type(kind, entry, where)


def _refuse_type_keys(where: str, kind: Mapping[str, Any]) -> None:
    refuse_unknown_keys(where, kind, type_keys(), {})

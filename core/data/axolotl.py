"""The ``datasets`` of an Axolotl configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.data.mapping import ColumnMap, ColumnRole
from core.data.registry import DataSource, load_registry, refuse_unknown_keys
from core.data.shards import list_shards
from core.data.turns import REASONING_KEYS
from core.errors import UserError
from core.text import one_line

#: The keys of an entry that are read.
KEYS = {
    *("path", "type", "split", "name", "data_files", "ds_type", "field", "shards", "shards_idx", "revision"),
    *("trust_remote_code", "chat_template", "chat_template_jinja", "field_messages", "field_tools", "field_thinking"),
    *("message_property_mappings", "message_field_training", "message_field_training_detail", "roles_to_train"),
    *("train_on_eos", "train_on_eot", "roles", "drop_system_message", "split_thinking", "message_field_role"),
    *("message_field_content", "conversation", "field_human", "field_model", "preprocess_shards", "strict"),
}
# Keys that change what is learned and have no counterpart in an entry here: only these values are taken.
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "shards": ((None,), "Write the rows that are wanted to a file of their own"),
    "shards_idx": ((None,), "Write the rows that are wanted to a file of their own"),
    "chat_template": ((None, "tokenizer_default"), "Remove it, and set template.file"),
    "chat_template_jinja": ((None,), "Remove it, and set template.file"),
    "message_field_training_detail": ((None,), "Remove it; whole messages are learned or not"),
    "roles_to_train": ((None, ["assistant"], ["gpt"], ["gpt", "assistant"], ["assistant", "gpt"]), "Remove it"),
    "train_on_eos": ((None, "turn"), "Remove it; the end of an answer is always learned"),
    "train_on_eot": ((None, "turn"), "Remove it; the end of an answer is always learned"),
    "drop_system_message": ((None, False), "Remove the system messages from the rows"),
    "split_thinking": ((None, False), "Remove it"),
    "field_thinking": ((None, *REASONING_KEYS), f"Rename the key to {REASONING_KEYS[0]}"),
}
#: Instruction types: their columns by part.
TYPES: dict[str, dict[ColumnRole, str]] = {
    "alpaca": {"user": "instruction", "context": "input", "assistant": "output"},
    "oasst": {"user": "INSTRUCTION", "assistant": "RESPONSE"},
    "gpteacher": {"user": "instruction", "context": "input", "assistant": "response"},
    "summarizetldr": {"user": "article", "assistant": "summary"},
    "alpaca_chat": {"user": "instruction", "context": "input", "assistant": "response"},
    "alpaca_chat.load_qa": {"user": "question", "assistant": "answer"},
    "alpaca_chat.load_concise": {"user": "instruction", "context": "input", "assistant": "response"},
    "alpaca_chat.load_camel_ai": {"user": "message_1", "assistant": "message_2"},
    "alpaca_w_system.load_open_orca": {"system": "system_prompt", "user": "question", "assistant": "response"},
    "metharme": {"user": "prompt", "assistant": "generation"},
}
_TYPE_KEYS = {
    *("system_prompt", "system_format", "field_system", "field_instruction", "field_input", "field_output"),
    *("format", "no_input_format", "field"),
}
_LOADERS = ("json", "csv", "parquet", "arrow", "text")
_ROLE_PARTS: dict[str, ColumnRole] = {
    "user": "user_role",
    "assistant": "assistant_role",
    "system": "system_role",
    "tool": "tool_role",
}


def read_axolotl(path: Path, entry: str) -> list[DataSource]:
    """The entries of ``datasets``.

    Args:
        path: The YAML file; paths in it are relative to its directory.
        entry: Which one, counted from 1, or its path; empty for all.

    Raises:
        UserError: If there is no such entry, or it asks for what is not done here.
    """
    shown = one_line(str(path))
    config = load_registry(path)
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
    name = f"{file}#{number}"
    return [DataSource(name, path, format_, columns) for path in _paths(file, entry, where)]


def entry_reading(entry: Mapping[str, Any], where: str) -> tuple[str, ColumnMap | None]:
    """How the rows of an entry are read: the format, and the columns where they are named.

    Args:
        entry: The entry; its paths are not looked at.
        where: What it is called in messages.

    Raises:
        UserError: If it has a key that is none, or asks for what is not done here.
    """
    refuse_unknown_keys(where, entry, KEYS, {"format": "type", "file": "path"})
    for key, (allowed, hint) in _FIXED.items():
        if entry.get(key) not in allowed:
            value = one_line(str(entry[key]), 40)
            raise UserError(f"{where} has {key}: {value}, which is not done here.", f"{hint}.")
    return _reading(entry, where)


def _paths(file: Path, entry: Mapping[str, Any], where: str) -> list[Path]:
    path, listed, split = entry.get("path"), entry.get("data_files"), entry.get("split")
    if not isinstance(path, str) or not path:
        raise UserError(f"{where} has no path.", "Add the path of its data file.")
    if split is not None and (not isinstance(split, str) or "[" in split):
        raise UserError(f"{where} has the split {one_line(str(split), 40)}, a part of one.", "Name a whole split.")
    names = [listed] if isinstance(listed, str) else listed or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: data_files is no path and no list of paths.", "Mend it.")
    base = file.parent if path in _LOADERS and names else file.parent / os.path.expanduser(path)
    if not base.exists():
        raise UserError(
            f"{where}: there is nothing at {one_line(str(base))}.",
            "Paths are relative to the file; a dataset of the Hub must be downloaded first.",
        )
    if names:
        return [base / name for name in names]
    return [base.with_name(f"{base.name}#{split}") if split and _has_split(base, split) else base]


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
        return "auto", _custom_columns(kind, where)
    if not isinstance(kind, str):
        raise UserError(f"{where} has a type that is no name.", "Write, for example, type: alpaca.")
    name = kind.partition(":")[0]
    if name == "chat_template":
        return "auto", ColumnMap(_chat_parts(entry, where))
    if name in ("completion", "pretrain"):
        return "auto", ColumnMap({"text": str(entry.get("field") or "text")})
    if name in TYPES:
        return "auto", ColumnMap(TYPES[name])
    if name.startswith("sharegpt"):
        raise UserError(f"{where} has the type sharegpt, which Axolotl has removed.", "Write type: chat_template.")
    known = ", ".join(["chat_template", "completion", *TYPES])
    raise UserError(
        f"{where} has the type {one_line(kind, 40)}, which is not read here.",
        f"Name the file itself with data.columns. The types read are {known}.",
    )


def _chat_parts(entry: Mapping[str, Any], where: str) -> dict[ColumnRole, str]:
    mappings = entry.get("message_property_mappings") or {}
    if not isinstance(mappings, dict):
        raise UserError(f"{where}: message_property_mappings is no table.", "Write role and content.")
    parts: dict[ColumnRole, str] = {"messages": str(entry.get("field_messages") or "messages")}
    for part, older in (("role", "message_field_role"), ("content", "message_field_content")):
        if name := mappings.get(part) or entry.get(older):
            parts["role" if part == "role" else "content"] = str(name)
    if entry.get("message_field_training"):
        parts["train"] = str(entry["message_field_training"])
    parts["tools"] = str(entry.get("field_tools") or "tools")
    roles = entry.get("roles") or {}
    if not isinstance(roles, dict) or not set(roles) <= _ROLE_PARTS.keys():
        raise UserError(f"{where}: roles may name {', '.join(_ROLE_PARTS)}.", "Mend it.")
    for role, names in roles.items():
        parts[_ROLE_PARTS[role]] = ",".join(map(str, names)) if isinstance(names, list) else str(names)
    return parts


def _custom_columns(kind: Mapping[str, Any], where: str) -> ColumnMap:
    refuse_unknown_keys(f"{where}: type", kind, _TYPE_KEYS, {})
    if kind.get("field"):
        return ColumnMap({"text": str(kind["field"])})
    plain = {"format": ("{instruction}", "{instruction}\n{input}"), "no_input_format": ("{instruction}",)}
    for key, allowed in {**plain, "system_format": ("{system}",)}.items():
        if kind.get(key) not in (None, "", *allowed):
            raise UserError(
                f"{where} has a {key} of its own, which is not done here.",
                "Remove it; the chat template says how a turn is written.",
            )
    parts: dict[ColumnRole, str] = {
        "user": str(kind.get("field_instruction") or "instruction"),
        "context": str(kind.get("field_input") or "input"),
        "assistant": str(kind.get("field_output") or "output"),
        "system": str(kind.get("field_system") or "system"),
    }
    system = kind.get("system_prompt")
    return ColumnMap(parts, {"system": system} if isinstance(system, str) and system.strip() else {})

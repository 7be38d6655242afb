"""Axolotl datasets: the ``datasets`` entries of an Axolotl configuration, and the columns of their types.

Axolotl's older types write a prompt around the columns: turn markers, and in some types a sentence that describes the
task. Here the model's chat template writes the markers. The sentence is part of the trained text, so types with one
are refused; the entry can give the sentence instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli

from core.config.choices import ColumnRole
from core.data.conversation import RowError, parsed
from core.data.files.reader import list_shards
from core.data.formats.mapping import BuiltColumns, ColumnMap, TextFormat, text_of
from core.data.registries.axolotl_chat import FIXED, read_chat
from core.data.registries.source import DataSource, hub_source, note_outside, refuse_unknown_keys
from core.errors import UserError
from core.hub_uri import HubEntry, is_hub_entry, is_hub_id, make_entry, parse_dataset
from core.paths import user_path
from core.text import one_line

_TABLES = tomli.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
#: Supported keys of an entry.
KEYS = frozenset(_TABLES["keys"])
#: Names of file loaders that may take the place of a path; the files are in ``data_files``.
LOADERS: list[str] = _TABLES["loaders"]
# Keys without a counterpart that change the training: the only accepted values, and the hint.
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "shards": ((None, 0, 1), "Write the rows that are wanted to a file of their own"),
    "shards_idx": ((None, 0), "Write the rows that are wanted to a file of their own"),
    **FIXED,
}

#: Types of a prompt and an answer: columns by role.
PLAIN: dict[str, dict[ColumnRole, str]] = {
    name: group["columns"] for group in _TABLES["plain"] for name in group["types"]
}
#: Types that compose prompt and answer from several columns and fixed words.
JOINED: dict[str, dict[str, Any]] = _TABLES["joined"]
#: Known but unsupported types, with the reason and a hint.
REFUSED: dict[str, tuple[str, str]] = {
    name: (group["reason"], group["hint"]) for group in _TABLES["refused"] for name in group["types"]
}
#: Formats of a custom type: allowed fields, the default, and the formats of fields alone, which the chat template puts
#: into turns.
_FORMATS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "format": (("instruction", "input"), "{instruction} {input} ", ("{instruction}", "{instruction}\n{input}")),
    "no_input_format": (("instruction",), "{instruction} ", ("{instruction}",)),
    "system_format": (("system",), "{system}", ("{system}",)),
}
_FIELDS = ("instruction", "input", "output", "system")
_TYPE_KEYS = {"system_prompt", "field", *_FORMATS, *(f"field_{name}" for name in _FIELDS)}


def read_axolotl(path: Path, entry: str, config: Any) -> list[DataSource]:
    """Read the entries of ``datasets``.

    Args:
        path: The YAML file; paths in it are relative to its directory.
        entry: Number of the entry, from 1, or its path; empty for all.
        config: Content of the file.

    Raises:
        UserError: If there is no such entry, it uses an unsupported option, or it names a forbidden file (see
            :func:`~core.data.registries.source.note_outside`).
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
            hint = f"It has {len(entries)}; #1 is the first."
            raise UserError(f"{shown} has no dataset {one_line(entry, 60)}.", hint)
    return [source for number in numbers for source in _read_entry(path, number, entries[number - 1])]


def _read_entry(file: Path, number: int, entry: Any) -> list[DataSource]:
    where = f"{one_line(str(file))}#{number}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not a table.", "Write path and type.")
    format_, columns = entry_reading(entry, where)
    source = DataSource(f"{file}#{number}", file, format_, columns)
    path = entry.get("path")
    # A local path takes precedence over the hub.
    is_here = isinstance(path, str) and os.path.exists(file.parent / path)
    if not is_here and (entries := hub_entries(entry, where)) is not None:
        return [hub_source(item, source) for item in entries]
    return [replace(source, path=path, note=note) for path, note in _paths(file, entry, where)]


def entry_reading(entry: Mapping[str, Any], where: str) -> tuple[str, ColumnMap | None]:
    """Format of the rows of an entry, and the column mapping if it names columns.

    Args:
        entry: The entry; paths are not checked.
        where: Name of the entry in messages.

    Raises:
        UserError: If it has an unknown key, or uses an unsupported option.
    """
    refuse_unknown_keys(where, entry, KEYS, {"format": "type", "file": "path"})
    for key, (allowed, hint) in _FIXED.items():
        if entry.get(key) not in allowed:
            value = one_line(str(entry[key]), 40)
            raise UserError(f"{where} has {key}: {value}, which is not done here.", f"{hint}.")
    kind = entry.get("type")
    if kind is None or kind == "":
        return "tokens", None
    if isinstance(kind, dict):
        return "auto", _read_table(kind, where)
    if not isinstance(kind, str):
        raise UserError(f"{where} has a type that is not a name.", "Write, for example, type: alpaca.")
    if kind.partition(":")[0] == "chat_template":
        return "auto", read_chat(entry, where)
    return _read_type(kind, entry, where)


def hub_entries(entry: Mapping[str, Any], where: str) -> list[HubEntry] | None:
    """Hub datasets of an entry; None if its path is not of the form ``owner/name``.

    Args:
        entry: The entry. A local directory of the same name is not considered.
        where: Name of the entry in messages.

    Raises:
        UserError: If it selects a part of a split, or its ``data_files`` are invalid.
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
        raise UserError(f"{where}: data_files is neither a path nor a list of paths.", "Fix it.")
    return names


def _paths(file: Path, entry: Mapping[str, Any], where: str) -> list[tuple[Path, str]]:
    """Files of an entry, each with a note on its location."""
    path, split = entry.get("path"), entry.get("split")
    if not isinstance(path, str) or not path:
        raise UserError(f"{where} has no path.", "Add the path of its data file.")
    if split is not None and (not isinstance(split, str) or set("[/") & set(split)):
        raise UserError(f"{where} has the split {one_line(str(split), 40)}, a part of one.", "Name a whole split.")
    names = _listed(entry, where)
    base = file.parent if path in LOADERS and names else file.parent / user_path(path)
    if not os.path.exists(base):
        hint = "Paths are relative to the file; a dataset of the Hub is owner/name."
        raise UserError(f"{where}: there is nothing at {one_line(str(base))}.", hint)
    if names:
        return [(base / name, note_outside(file, base / name, where)) for name in names]
    note = note_outside(file, base, where)
    return [(base.with_name(f"{base.name}#{split}") if split and base.name and _has_split(base, split) else base, note)]


def _has_split(directory: Path, split: str) -> bool:
    try:
        return directory.is_dir() and bool(list_shards(directory, split))
    except UserError:
        return False


# Types.


def _read_type(name: str, entry: Mapping[str, Any], where: str) -> tuple[str, ColumnMap | None]:
    """Format and columns of a dataset type other than ``chat_template``.

    Raises:
        UserError: If it is unknown or not supported.
    """
    base = name.partition(":")[0].removesuffix(".load")
    if base in ("completion", "pretrain"):
        return "auto", ColumnMap({"text": str(entry.get("field") or "text")})
    if base in PLAIN:
        return "auto", ColumnMap(PLAIN[base])
    if base in JOINED:
        return "auto", _joined(**JOINED[base])
    if base in _OTHERS:
        return "auto", _OTHERS[base]()
    if base == "input_output":
        return "segments", None
    if base.startswith("sharegpt"):
        raise UserError(f"{where} has the type sharegpt, which Axolotl has removed.", "Write type: chat_template.")
    refused = REFUSED.get(base) or REFUSED.get(base.partition(".")[0])
    if refused is not None:
        reason, hint = refused
        raise UserError(f"{where} has the type {one_line(base, 40)}, which {reason}.", hint)
    known = ", ".join(["chat_template", "completion", "input_output", *PLAIN, *JOINED, *_OTHERS])
    raise UserError(
        f"{where} has the type {one_line(name, 40)}, which is not read here.",
        f"Name the file itself with data.columns. The types read are {known}.",
    )


def _read_table(kind: Mapping[str, Any], where: str) -> ColumnMap:
    """Columns of a custom type, a table of ``field_*`` keys and formats.

    The text of a custom format is the prompt, without a chat template.

    Raises:
        UserError: If a key or a field of a format is unknown.
    """
    refuse_unknown_keys(f"{where}: type", kind, _TYPE_KEYS, {})
    wrong = next((key for key, value in kind.items() if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        raise UserError(f"{where}: type.{wrong} is not text.", "Fix it.")
    if kind.get("field"):
        return ColumnMap({"text": kind["field"]})
    fields = {name: kind.get(f"field_{name}") or name for name in _FIELDS}
    if any(kind.get(key) and kind[key] not in alone for key, (_, _, alone) in _FORMATS.items()):
        return _formatted(kind, fields, where)
    parts: dict[ColumnRole, str] = {
        "user": fields["instruction"],
        "context": fields["input"],
        "assistant": fields["output"],
        "system": fields["system"],
    }
    system = kind.get("system_prompt") or ""
    return ColumnMap(parts, {"system": system} if system.strip() else {})


def _formatted(kind: Mapping[str, Any], fields: Mapping[str, str], where: str) -> ColumnMap:
    """Columns for custom formats: plain text prompts, without a chat template."""
    formats = {
        key: TextFormat.parse(kind.get(key) or default, names, f"{where}: type.{key}")
        for key, (names, default, _) in _FORMATS.items()
    }
    constant = kind.get("system_prompt") or ""

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: text_of(data, column) for name, column in fields.items()}
        if fields["system"] not in data:
            values["system"] = constant
        prompt = formats["system_format"].fill(values) if values["system"] else ""
        prompt += formats["format" if values["input"] else "no_input_format"].fill(values)
        return _raw(prompt, values["output"], "The answer is empty.")

    words = f"the prompt is written as {one_line(kind.get('format') or _FORMATS['format'][1], 80)}, no template"
    needed, optional = _needed(fields["instruction"], fields["output"]), (fields["input"], fields["system"])
    return BuiltColumns(needed, reads="segments", build=build, words=words, optional=optional)


def _joined(columns: list[str], prompt: str, answer: str) -> ColumnMap:
    asked, answered = TextFormat.parse(prompt, columns, "prompt"), TextFormat.parse(answer, columns, "answer")

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        values = {column: text_of(data, column) for column in columns}
        return {"prompt": asked.fill(values), "completion": answered.fill(values) if values[columns[-1]] else ""}

    words = f"the question is {one_line(prompt, 80)}, the answer {one_line(answer, 80)}"
    return BuiltColumns(_needed(*columns), build=build, words=words)


def _metharme() -> ColumnMap:
    """Prompts that contain turn markers, so no chat template may be applied."""

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        return _raw(text_of(data, "prompt"), text_of(data, "generation"), "The generation is empty.")

    words = "prompt is the text before generation, no template"
    return BuiltColumns(_needed("prompt", "generation"), reads="segments", build=build, words=words)


def _pygmalion() -> ColumnMap:
    """Conversations with a character, whose description becomes the system message."""

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        messages = []
        for turn, text in _turns(data):
            role = turn.get("role")
            if role == "system":
                text = "Persona: " + text.removesuffix("\n<START>").strip()
            name = {"human": "user", "bot": "assistant"}.get(str(role), role)
            messages.append({"role": name, "content": text.strip()})
        return {"messages": messages}

    words = "role and value of conversations"
    return BuiltColumns(_needed("conversations"), reads="messages", build=build, words=words)


def _llama2_chat() -> ColumnMap:
    """Conversations of ``human`` and ``gpt``; texts are stripped, and an answer before any question is left out."""

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        messages = [{"role": turn.get("from"), "content": text.strip()} for turn, text in _turns(data) if text]
        first = 1 if messages and messages[0]["role"] == "system" else 0
        if len(messages) > first and messages[first]["role"] == "gpt":
            del messages[first]
        return {"messages": messages}

    words = "from and value of conversations"
    return BuiltColumns(_needed("conversations"), reads="messages", build=build, words=words)


_OTHERS: dict[str, Callable[[], ColumnMap]] = {
    "metharme": _metharme,
    "pygmalion": _pygmalion,
    "llama2_chat": _llama2_chat,
}


def _needed(*columns: str) -> dict[ColumnRole, str]:
    """Required columns, under arbitrary, distinct roles."""
    parts: tuple[ColumnRole, ...] = ("user", "assistant", "context", "system")
    return dict(zip(parts, columns, strict=False))


def _raw(prompt: str, answer: str, problem: str) -> dict[str, Any]:
    """A row of two segments: the prompt, and the answer, trained on with an appended end-of-text token."""
    if not answer.strip():
        raise RowError("empty_answer", problem)
    segments = [{"text": prompt, "label": False}, {"text": answer, "label": True}]
    return {"segments": segments, "add_special_tokens": True}


def _turns(data: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Turns in the column ``conversations``, each with its text."""
    turns = parsed(data.get("conversations"))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("wrong_keys", "The column 'conversations' is not a list of messages.")
    for number, turn in enumerate(turns, 1):
        text = turn.get("value")
        if not isinstance(text, str):
            raise RowError("bad_content", f"Message {number} has no text.")
        yield turn, text

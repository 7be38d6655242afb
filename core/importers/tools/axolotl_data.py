"""Axolotl: its datasets, as ``data.train`` and ``data.eval``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.data.files.shards import list_shards
from core.data.formats.mapping import ColumnMap
from core.data.registries.axolotl import KEYS, entry_reading, hub_entries
from core.data.registries.axolotl_chat import plain_columns
from core.errors import UserError
from core.importers.common.data_files import PLACEHOLDER, Written, put_sources, write_entry, write_file
from core.importers.common.splits import Part, read_splits
from core.importers.common.steps import count_entries
from core.importers.redact import shown
from core.importers.tools.axolotl_template import Style, choose_template
from core.importers.translation import Translation, file_name

#: Options that the keys of datasets may set.
DATA_OPTIONS = (
    "data.train",
    "data.eval",
    "data.format",
    "data.columns",
    "data.weights",
    "template.name",
    "template.file",
)

# Loaders of files: the entry's files are in data_files.
_LOADERS = ("json", "csv", "parquet", "arrow", "text")
_TEXT_COLUMN = "text_column"
# Keys of an entry that locate its rows on the Hub; they do not apply to a local path.
_OF_HUB = {
    "name": "It names a part of a dataset of the Hub, and the data is on this machine.",
    "revision": "It names a version of a dataset of the Hub, and the data is on this machine.",
}
# Keys of an entry without a counterpart that leave the rows unchanged.
_LEFT: dict[str, str] = {
    "trust_remote_code": "Code that comes with a dataset is not run.",
    "preprocess_shards": "Rows are read in one go.",
    "strict": "Every row that cannot be read is reported.",
    "conversation": "It belongs to the type sharegpt, which Axolotl has removed.",
    "field_human": "It has no effect in Axolotl any more.",
    "field_model": "It has no effect in Axolotl any more.",
    "input_format": "The chat template says how a turn is written.",
    "input_transform": "Rows are read as they are.",
    "logprobs_field": "Distillation is not offered.",
    "temperature": "Distillation is not offered.",
    "skip": "All rows are read: write those that are wanted to a file of their own.",
    "field_chosen": "Preference pairs are read from the columns chosen and rejected.",
    "field_rejected": "Preference pairs are read from the columns chosen and rejected.",
    "step_separator": "Rewards of steps are not learned.",
    "max_completion_length": "Rewards of steps are not learned.",
    "train_on_last_step_only": "Rewards of steps are not learned.",
    "length": "Rows are not made up.",
    "sequence_length": "Rows are not made up.",
    "min_input_id": "Rows are not made up.",
    "max_input_id": "Rows are not made up.",
    "seed": "Rows are not made up.",
}
_ENTRY_KEYS = {*KEYS, *_LEFT, *_OF_HUB, _TEXT_COLUMN}
# Instruction types to the nearest template, by the part of the type after the colon.
_STYLES = {"": "alpaca", "instruct": "alpaca", "chat": "vicuna", "chatml": "chatml", "phi": "phi3"}
_ALPACA_TYPES = ("alpaca", "gpteacher", "oasst")


@dataclass(frozen=True)
class _Dataset:
    """A dataset entry, as far as it can be read.

    Args:
        key: ``datasets[1]``.
        sources: Its files.
        format: The format of its rows, or ``auto``.
        columns: The columns that its type names, as in ``data.columns``.
        needs_file: Whether its type needs more than format and columns can express.
        is_readable: Whether it is one of ``datasets`` and our reader takes it as it is in the file.
        style: The named template nearest to the format of its type.
        template: Its own ``chat_template``.
    """

    key: str
    sources: list[Written]
    format: str = "auto"
    columns: ColumnMap | None = None
    needs_file: bool = False
    is_readable: bool = False
    style: str | None = None
    template: str | None = None

    @property
    def is_instruction(self) -> bool:
        """Whether Axolotl formats its rows by the type instead of a chat template."""
        return self.columns is not None and "assistant" in self.columns.columns

    @property
    def reading(self) -> tuple[str, dict[Any, str]]:
        """Format and columns."""
        return self.format, dict(self.columns.columns) if self.columns is not None else {}


def datasets(work: Translation) -> bool:
    """Convert ``datasets``, ``pretraining_dataset``, ``test_datasets`` and ``chat_template``.

    Returns:
        Whether there are rows for evaluation.
    """
    train = _read(work, "datasets") + _read(work, "pretraining_dataset")
    held = _read(work, "test_datasets")
    every = [*train, *held]
    # Entries in the YAML file define their own format and columns; data.columns is for the others.
    named = [entry for entry in every if entry.needs_file and entry.is_readable]
    plain = [entry for entry in every if entry not in named]
    if any(entry.reading != plain[0].reading for entry in plain):
        named = [entry for entry in every if entry.is_readable]
        plain = [entry for entry in every if entry not in named]
    is_alike = all(entry.reading == plain[0].reading for entry in plain)
    for key, option, entries in (
        ("datasets", "data.train", train),
        ("pretraining_dataset", "data.train", train),
        ("test_datasets", "data.eval", held),
    ):
        if any(entry.key.startswith(f"{key}[") for entry in entries):
            sources = [source for entry in entries for source in _written(work, entry, is_named=entry in named)]
            put_sources(work, key, option, sources, _remark(work, entries, named))
            _take_parts(work, option, entries, sources)
        elif work.has(key) and option == "data.eval":
            work.drop(key, "It names no data that can be read here.")
    if not train:
        work.change("datasets", "data.train", PLACEHOLDER, "The file names no data that can be read here: put yours.")
    for entry in plain:
        if entry.needs_file or not (is_alike or entry.reading == ("auto", {})):
            work.drop(entry.key, "data.columns cannot say how it is read: the columns of a row decide.")
    if plain and is_alike:
        _put_reading(work, plain[0])
    choose_template(work, [Style(entry.key, entry.style, entry.template) for entry in train])
    return bool(held)


def _written(work: Translation, entry: _Dataset, *, is_named: bool) -> list[Written]:
    """The sources of an entry as they are written."""
    if not is_named:
        return entry.sources
    mark = f"#{entry.key.partition('[')[2][:-1]}"
    fetch = [each for source in entry.sources for each in source.fetch]
    return [Written(work.places.write(Path(os.path.abspath(work.source.path)), mark), "", True, tuple(fetch))]


def _remark(work: Translation, entries: list[_Dataset], named: list[_Dataset]) -> str:
    """A remark on the decisions for all entries."""
    if any(entry in named for entry in entries):
        return f"Rows are read as {file_name(work.source.path)} says, which must stay where it is."
    own = [entry for entry in entries if entry.is_instruction and entry.style is None]
    return f"The chat template writes the rows; the form of {own[0].key} is not offered." if own else ""


def _put_reading(work: Translation, entry: _Dataset) -> None:
    """Set format and columns, for all sources that are not entries of the file."""
    format_, columns = entry.reading
    if columns:
        work.put("data.columns", columns, f"As the type of {entry.key} says.")
    elif format_ == "tokens":
        work.put("data.format", format_, f"{entry.key} has no type: its rows are tokens.")
    elif format_ != "auto":
        work.put("data.format", format_, f"As the type of {entry.key} says.")


def _take_parts(work: Translation, option: str, entries: list[_Dataset], sources: list[Written]) -> None:
    """Slices of splits as ``data.weights``: the same number of rows, though not the same rows."""
    parted = [entry for entry in entries if any(source.part is not None for source in entry.sources)]
    if not parted or option != "data.train":
        for entry in parted:
            work.drop(f"{entry.key}.split", "Not a part of a split is measured, but eval.max_rows of all its rows.")
        return
    setting = work.settings.get("data.train")
    if setting is None or (setting.value if len(sources) > 1 else [setting.value]) != [one.text for one in sources]:
        for entry in parted:
            work.drop(f"{entry.key}.split", "Its data is not named.")
        return
    known = count_entries(work)
    counts: list[int | None] = [*known] if known is not None else [None] * len(sources)
    shares: dict[Written, float | None] = {}
    for source, count in zip(sources, counts, strict=True):
        share = source.part.share(count) if source.part is not None else 1.0
        shares[source] = round(share, 6) if share is not None and share >= 1e-6 else None
    weights = [shares[source] or 1.0 for source in sources]
    for entry in parted:
        if all(shares[source] is not None for source in entry.sources):
            work.change(
                f"{entry.key}.split", "data.weights", weights, "As many rows of the split; which, decides train.seed."
            )
        else:
            work.drop(f"{entry.key}.split", "A part of a split, of which the rows cannot be counted: all are used.")


def _read(work: Translation, key: str) -> list[_Dataset]:
    value = work.values.get(key)
    if value is None:
        return []
    if key == "pretraining_dataset" and isinstance(value, (str, dict)):
        value = [{"path": value} if isinstance(value, str) else value]
    if not isinstance(value, list):
        work.refuse(key, f"must be a list of datasets, not {shown(key, value)}", "Write - path: and type: below.")
    found = []
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, dict):
            work.refuse(key, f"has an entry that is no table: {shown(key, entry)}", "Write - path: and type: below.")
        if (dataset := _read_entry(work, f"{key}[{number}]", entry)) is not None:
            found.append(dataset)
    return found


def _read_entry(work: Translation, key: str, entry: Mapping[str, Any]) -> _Dataset | None:
    given = {name: value for name, value in entry.items() if value is not None}
    work.inner[key] = given
    for name, value in given.items():
        work.inner[f"{key}.{name}"] = value
        if name not in _ENTRY_KEYS:
            work.note_unknown(f"{key}.{name}", [f"{key}.{known}" for known in sorted(_ENTRY_KEYS)])
        elif name in _LEFT and value is not False:
            work.drop(f"{key}.{name}", _LEFT[name])
    if key.startswith("pretraining"):
        given = {"type": "pretrain", "field": given.get(_TEXT_COLUMN) or "text", **given}
    path = given.get("path")
    if not isinstance(path, str) or not path.strip():
        work.drop(key, "It has no path.")
        return None
    given["path"] = path.strip()
    sources = _sources(work, key, given)
    kind = given.get("type") if isinstance(given.get("type"), str) else ""
    template = given.get("chat_template")
    if template != "tokenizer_default":
        given.pop("chat_template", None)
    if str(kind).partition(":")[0].partition(".")[0] == "chat_template":
        # As its loader does, which knows no other parts of the name for supervised rows.
        given["type"] = "chat_template"
    is_whole = (
        template in (None, "tokenizer_default") and given.keys() <= KEYS and given.get("type") == entry.get("type")
    )
    readable = {name: value for name, value in given.items() if name in KEYS}
    try:
        format_, columns = entry_reading(readable, key)
        plain = plain_columns(readable, key) if given.get("type") == "chat_template" else columns
    except UserError as error:
        work.drop(key, f"{error} Until then, its columns decide how it is read.")
        return _Dataset(key, sources)
    needs_file = columns is not None and (type(plain) is not ColumnMap or bool(plain.constants))
    return _Dataset(
        key,
        sources,
        format_,
        None if needs_file else plain,
        needs_file,
        is_readable=is_whole and key.startswith("datasets[") and _is_found(work, given, sources),
        style=_style(str(kind)),
        template=template if isinstance(template, str) else None,
    )


def _is_found(work: Translation, entry: Mapping[str, Any], sources: list[Written]) -> bool:
    """Whether our reader, whose paths start at the file, takes the same rows of the entry."""
    file, split = Path(os.path.abspath(work.source.path)), str(entry.get("split") or "")
    if file.suffix.lower() not in (".yml", ".yaml") or "[" in split or "+" in split:
        return False
    if not all(source.is_read for source in sources):
        return False
    if file.parent == work.places.base or os.path.isabs(str(entry["path"])):
        return True
    return not work.places.is_local(str(entry["path"])) and not os.path.lexists(file.parent / str(entry["path"]))


def _style(kind: str) -> str | None:
    """The named template nearest to the format of an instruction type."""
    name, _, style = kind.partition(":")
    if name in _ALPACA_TYPES:
        return _STYLES.get(style)
    return "vicuna" if name.startswith("alpaca_chat") else None


def _sources(work: Translation, key: str, entry: Mapping[str, Any]) -> list[Written]:
    """The files of an entry, or its part of a Hub dataset."""
    path, listed = entry["path"], entry.get("data_files")
    files = [listed] if isinstance(listed, str) else listed or []
    if not isinstance(files, list) or not all(isinstance(name, str) and name for name in files):
        work.refuse(f"{key}.data_files", "must be a path or a list of paths")
    try:
        parts = list(dict.fromkeys(read_splits(str(entry.get("split") or ""))))
    except ValueError:
        work.drop(f"{key}.split", "No such split: that for training is read.")
        parts = [Part("")]
    if not work.places.is_local(path) and (found := _of_hub(key, entry, parts)) is not None:
        return found
    for name, reason in _OF_HUB.items():
        if entry.get(name):
            work.drop(f"{key}.{name}", reason)
    if files:
        prefix = "" if path in _LOADERS else f"{path.rstrip('/')}/"
        return [write_file(work, f"{prefix}{name}") for name in files]
    written = []
    for part in parts:
        mark = f"#{part.split}" if part.split and _names_split(work, path, part.split) else ""
        written.append(replace(write_file(work, path, mark), part=None if part.is_whole else part))
    return list(dict.fromkeys(written))


def _of_hub(key: str, entry: Mapping[str, Any], parts: Iterable[Part]) -> list[Written] | None:
    """The Hub datasets of an entry; None where its path is not a Hub name."""
    found: list[Written] = []
    try:
        for part in parts:
            entries = hub_entries({**entry, "split": part.split}, key)
            if entries is None:
                return None
            found += [replace(write_entry(each), part=None if part.is_whole else part) for each in entries]
    except UserError as error:
        return [Written(str(entry["path"]), str(error), False)]
    return list(dict.fromkeys(found))


def _names_split(work: Translation, path: str, split: str) -> bool:
    """Whether the split must be named: for a directory that has it, and for one that is yet to be downloaded."""
    if not work.places.exists(path):
        return split != "train" and not work.places.is_local(path)
    try:
        return work.places.locate(path).is_dir() and bool(list_shards(work.places.locate(path), split))
    except (UserError, OSError):
        return False

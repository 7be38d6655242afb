"""The datasets of an Axolotl configuration, as ``data.train`` and ``data.eval``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.importers.data_files import PLACEHOLDER, Written, put_sources, write_file
from core.config.importers.redact import shown
from core.config.importers.rules import Choice
from core.config.importers.translation import Translation, file_name
from core.data.axolotl import KEYS, entry_reading
from core.data.mapping import ColumnMap
from core.data.shards import list_shards
from core.errors import UserError

#: What the keys that hold datasets may set.
DATA_OPTIONS = ("data.train", "data.eval", "data.format", "data.columns", "template.name", "template.file")

# Loaders of files: the entry's files are in data_files.
_LOADERS = ("json", "csv", "parquet", "arrow", "text")
_TEXT_COLUMN = "text_column"
# Keys of an entry without a counterpart that leave the rows as they are.
_LEFT: dict[str, str] = {
    "name": "It names a part of a dataset of the Hub: download that part.",
    "revision": "It names a version of a dataset of the Hub: download that version.",
    "trust_remote_code": "Code that comes with a dataset is not run.",
    "preprocess_shards": "Rows are read in one go.",
    "strict": "Every row that cannot be read is reported.",
    "conversation": "It belongs to the type sharegpt, which Axolotl has removed.",
    "field_human": "It has no effect in Axolotl any more.",
    "field_model": "It has no effect in Axolotl any more.",
    "input_format": "The chat template says how a turn is written.",
    "input_transform": "Rows are read as they are.",
    "template_thinking_key": "Thoughts are passed to the template as reasoning_content.",
    "logprobs_field": "Distillation is not offered.",
    "temperature": "Distillation is not offered.",
    "skip": "All rows are read: write those that are wanted to a file of their own.",
    "field_chosen": "Preferences are not learned.",
    "field_rejected": "Preferences are not learned.",
    "step_separator": "Rewards of steps are not learned.",
    "max_completion_length": "Rewards of steps are not learned.",
    "train_on_last_step_only": "Rewards of steps are not learned.",
    "length": "Rows are not made up.",
    "sequence_length": "Rows are not made up.",
    "min_input_id": "Rows are not made up.",
    "max_input_id": "Rows are not made up.",
    "seed": "Rows are not made up.",
}
_ENTRY_KEYS = {*KEYS, *_LEFT, _TEXT_COLUMN}
# How instruction types write a row, by the part of the type behind the colon: the template that comes nearest.
_STYLES = {"": "alpaca", "instruct": "alpaca", "chat": "vicuna", "chatml": "chatml", "phi": "phi3"}
_ALPACA_TYPES = ("alpaca", "gpteacher", "oasst")


@dataclass(frozen=True)
class _Dataset:
    """An entry, as far as it can be read.

    Args:
        key: ``datasets[1]``.
        sources: Its files.
        columns: The columns that its type names.
        is_tokens: Whether its rows are tokens.
        is_readable: Whether our reader takes it as it stands in the file.
        style: The named template that writes rows as its type does, or comes near.
        template: The ``chat_template`` of its own.
    """

    key: str
    sources: list[Written]
    columns: ColumnMap | None = None
    is_tokens: bool = False
    is_readable: bool = False
    style: str | None = None
    template: str | None = None

    @property
    def is_instruction(self) -> bool:
        """Whether Axolotl writes its rows in a form of the type's own."""
        return self.columns is not None and "assistant" in self.columns.columns


def datasets(work: Translation) -> bool:
    """Carry ``datasets``, ``pretraining_dataset``, ``test_datasets`` and ``chat_template`` over.

    Returns:
        Whether there are rows to measure on.
    """
    train = _read(work, "datasets") + _read(work, "pretraining_dataset")
    held = _read(work, "test_datasets")
    every = [*train, *held]
    common = _common_columns(every)
    for key, option, entries in (
        ("datasets", "data.train", train),
        ("pretraining_dataset", "data.train", train),
        ("test_datasets", "data.eval", held),
    ):
        if any(entry.key.startswith(f"{key}[") for entry in entries):
            also, sources = _written(work, entries, is_mixed=common is None)
            put_sources(work, key, option, sources, also)
        elif work.has(key) and option == "data.eval":
            work.drop(key, "It names no data that can be read here.")
    if not train:
        work.change("datasets", "data.train", PLACEHOLDER, "The file names no data that can be read here: put yours.")
    if common:
        work.put("data.columns", dict(common), f"As the type of {every[0].key} says.")
    elif every and all(entry.is_tokens for entry in every):
        work.put("data.format", "tokens", f"{every[0].key} has no type: its rows are tokens.")
    _template(work, train)
    return bool(held)


def _written(work: Translation, entries: list[_Dataset], *, is_mixed: bool) -> tuple[str, list[Written]]:
    """What was decided for all entries, and the sources as they are written."""
    if not is_mixed:
        own = [entry for entry in entries if entry.is_instruction and entry.style is None]
        also = f"The chat template writes the rows; the form of {own[0].key} is not offered." if own else ""
        return also, [source for entry in entries for source in entry.sources]
    file = Path(os.path.abspath(work.source.path))
    can_refer = file.parent == work.places.base and file.suffix.lower() in (".yml", ".yaml")
    also, sources = "data.columns holds for all and cannot say it: the columns of a row decide.", []
    for entry in entries:
        name, _, number = entry.key.partition("[")
        if can_refer and entry.is_readable and name == "datasets":
            also = f"Rows are read as {file_name(file)} says, which must stay where it is."
            sources.append(Written(work.places.write(file, f"#{number[:-1]}"), "", True))
            continue
        sources += entry.sources
        if entry.columns is not None and entry.columns.constants:
            work.drop(f"{entry.key}.type", "A system prompt for all rows is not offered: put it into the rows.")
    return also, sources


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
    sources = list(_sources(work, key, given))
    kind = given.get("type") if isinstance(given.get("type"), str) else ""
    template = given.pop("chat_template", None)
    if str(kind).partition(":")[0].partition(".")[0] == "chat_template":
        # As its loader does, which knows no other parts of the name for supervised rows.
        given["type"] = "chat_template"
    is_whole = (
        given.keys() <= KEYS and "[" not in str(given.get("split", "")) and given.get("type") == entry.get("type")
    )
    try:
        format_, columns = entry_reading({name: value for name, value in given.items() if name in KEYS}, key)
    except UserError as error:
        work.drop(key, f"{error} Until then, its columns decide how it is read.")
        return _Dataset(key, sources)
    return _Dataset(
        key,
        sources,
        columns,
        is_tokens=format_ == "tokens",
        is_readable=is_whole and all(source.is_there for source in sources) and template is None,
        style=_style(str(kind)),
        template=template if isinstance(template, str) else None,
    )


def _style(kind: str) -> str | None:
    """The named template that writes rows as an instruction type does, or comes near."""
    name, _, style = kind.partition(":")
    if name in _ALPACA_TYPES:
        return _STYLES.get(style)
    return "vicuna" if name.startswith("alpaca_chat") else None


def _sources(work: Translation, key: str, entry: Mapping[str, Any]) -> Iterable[Written]:
    path, split = str(entry["path"]).strip(), entry.get("split")
    listed = entry.get("data_files")
    files = [listed] if isinstance(listed, str) else listed or []
    if not isinstance(files, list) or not all(isinstance(name, str) and name for name in files):
        work.refuse(f"{key}.data_files", "must be a path or a list of paths")
    if files:
        prefix = "" if path in _LOADERS else f"{path.rstrip('/')}/"
        return [write_file(work, f"{prefix}{name}") for name in files]
    split = str(split or "")
    if "[" in split or "+" in split:
        work.drop(f"{key}.split", "A part of a split cannot be named: all rows of its files are read.")
        split = ""
    return [write_file(work, path, f"#{split}" if split and _names_split(work, path, split) else "")]


def _names_split(work: Translation, path: str, split: str) -> bool:
    """Whether the split is to be written: for a directory that has it, and for one that is still to be downloaded."""
    if not work.places.exists(path):
        return split != "train" and not work.places.is_local(path)
    try:
        return work.places.locate(path).is_dir() and bool(list_shards(work.places.locate(path), split))
    except (UserError, OSError):
        return False


def _common_columns(entries: list[_Dataset]) -> Mapping[Any, str] | None:
    """The columns of all entries, empty where none are named; None where they differ, or say more than columns."""
    maps = [dict(entry.columns.columns) if entry.columns is not None else {} for entry in entries]
    has_constants = any(entry.columns is not None and entry.columns.constants for entry in entries)
    if has_constants or any(found != maps[0] for found in maps) or len({entry.is_tokens for entry in entries}) > 1:
        return None
    return maps[0] if maps else {}


#: ``chat_template``: most others are those that the models bring along.
_TEMPLATES = Choice(
    "template.name",
    same={"tokenizer_default": None, "chatml": "chatml", "llama3": "llama3", "gemma": "gemma", "phi_3": "phi3"},
    near={
        "phi_35": ("phi3", "The turns of Phi 3."),
        "mistral_v1": ("mistral", "Blanks around [INST] differ by a little."),
        "alpaca": ("alpaca", "Its first sentence differs by a little."),
    },
    otherwise=(None, "Not one of the templates here: the model's own chat template is used."),
)


def _template(work: Translation, train: list[_Dataset]) -> None:
    """Which chat template: instruction types write a row in a form of their own, whatever ``chat_template`` says."""
    styles = {entry.style for entry in train}
    if len(styles) == 1 and (style := next(iter(styles))) is not None:
        reason = f"The form in which Axolotl writes the type of {train[0].key}, or nearly so."
        for key in ("chat_template", "chat_template_jinja"):
            if work.has(key):
                work.drop(key, "The type of the datasets has a form of its own, and that counts in Axolotl.")
        work.put("template.name", style, reason)
        return
    for entry in train:
        if entry.template is not None and entry.template != work.values.get("chat_template"):
            known = {**_TEMPLATES.same, **{name: ours for name, (ours, _) in _TEMPLATES.near.items()}}
            ours = known.get(entry.template) if len({other.template for other in train}) == 1 else None
            if ours is not None:
                work.change(f"{entry.key}.chat_template", "template.name", ours, "It is the template of all rows here.")
            else:
                work.drop(f"{entry.key}.chat_template", "Not offered for one dataset: template.name is for all rows.")
    jinja = work.text("chat_template_jinja")
    if "template.name" in work.settings:
        if work.has("chat_template"):
            work.drop("chat_template", "The dataset's own counts.")
    elif jinja is None or work.values.get("chat_template") not in (None, "jinja"):
        work.choose("chat_template", _TEMPLATES)
    if jinja is not None and not work.is_done("chat_template_jinja"):
        if work.is_done("chat_template"):
            work.drop("chat_template_jinja", "It counts only with chat_template: jinja.")
        elif "\n" not in jinja and "{" not in jinja and work.places.exists(jinja):
            path = work.places.locate(jinja)
            work.change("chat_template_jinja", "template.file", work.places.write(path), "A file.")
        else:
            work.drop("chat_template_jinja", "Write it to a file, and name that in template.file.")
    if work.has("chat_template") and not work.is_done("chat_template"):
        work.carry("chat_template", None, reason="See chat_template_jinja.")

"""Axolotl: datasets, as ``data.train`` and ``data.eval``, and the chat template."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.data.files.reader import list_shards
from core.data.formats.mapping import ColumnMap
from core.data.registries.axolotl import KEYS, LOADERS, entry_reading, hub_entries
from core.data.registries.axolotl_chat import TEMPLATES, plain_columns
from core.errors import UserError
from core.importers.data_files import (
    PLACEHOLDER,
    Part,
    Written,
    count_entries,
    put_sources,
    read_splits,
    write_entry,
    write_file,
)
from core.importers.redact import shown
from core.importers.tool import DATA, REASONS, Choice
from core.importers.translation import Translation, file_name

# Keys of an entry that apply only to a dataset of the Hub.
_OF_HUB = ("name", "revision")
# Keys of an entry that have no counterpart and do not change the rows, and those that Axolotl ignores.
_LEFT = set(DATA["axolotl_dataset"]["left"].split())
_IGNORED: Mapping[str, str] = DATA["axolotl_dataset"]["ignored"]
_TEXT_COLUMN = "text_column"
_ENTRY_KEYS = {*KEYS, *_LEFT, *_OF_HUB, _TEXT_COLUMN}
# Nearest template of an instruction type, by the part of the type after the colon.
_STYLES = {"": "alpaca", "instruct": "alpaca", "chat": "vicuna", "chatml": "chatml", "phi": "phi3"}
_ALPACA_TYPES = ("alpaca", "gpteacher", "oasst")

#: Chat templates that differ slightly from ours, with the difference.
_NEAR = {
    "phi_3": "Without the token that begins a text.",
    "qwen_25": "Its default system prompt does not name its maker here.",
    **dict.fromkeys(("mistral_v1", "mistral_v2v3", "mistral_v3_tekken"), "Blanks around [INST] differ by a little."),
    "alpaca": "Its first sentence differs by a little.",
}
_TEMPLATE = Choice(
    "template.name",
    same={"tokenizer_default": None, **{name: ours for name, ours in TEMPLATES.items() if name not in _NEAR}},
    near={name: (TEMPLATES[name], difference) for name, difference in _NEAR.items()},
)
_FALLBACK = "tokenizer_default_fallback_"


@dataclass(frozen=True)
class Dataset:
    """A dataset entry.

    Args:
        key: Its key, such as ``datasets[1]``.
        sources: Its files.
        format: Format of its rows, or ``auto``.
        columns: Columns of its type, as in ``data.columns``.
        needs_file: True if ``data.columns`` cannot express its type, so the YAML file must be named instead.
        is_readable: True if our reader can read the entry from the YAML file.
        style: The built-in template nearest to the format of its type; None for conversations.
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
    def reading(self) -> tuple[str, dict[Any, str]]:
        """Format and columns."""
        return self.format, dict(self.columns.columns) if self.columns is not None else {}


def datasets(work: Translation) -> bool:
    """Convert ``datasets``, ``pretraining_dataset``, ``test_datasets`` and ``chat_template``.

    Returns:
        True if there are rows for evaluation.

    Raises:
        UserError: If a value is of the wrong kind.
    """
    train = _read(work, "datasets") + _read(work, "pretraining_dataset")
    held = _read(work, "test_datasets")
    every = [*train, *held]
    # An entry named through the YAML file has its own format and columns; data.columns applies to the others.
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
            take_parts(work, option, entries, sources)
        elif option == "data.eval":
            work.drop(key, "It names no data that can be read here.")
    if not train:
        work.change("datasets", "data.train", PLACEHOLDER, "The file names no data that can be read here: put yours.")
    for entry in plain:
        if entry.needs_file or not (is_alike or entry.reading == ("auto", {})):
            work.drop(entry.key, "data.columns cannot express its type: the columns of a row decide.")
    if plain and is_alike:
        format_, columns = plain[0].reading
        option, value = ("data.columns", columns) if columns else ("data.format", format_)
        if value != "auto":
            work.put(option, value, f"By the type of {plain[0].key}; rows without a type are tokens.")
    _template(work, train)
    return bool(held)


def _written(work: Translation, entry: Dataset, *, is_named: bool) -> list[Written]:
    """Sources of an entry as written to the configuration."""
    if not is_named:
        return entry.sources
    mark = f"#{entry.key.partition('[')[2][:-1]}"
    fetch = [each for source in entry.sources for each in source.fetch]
    return [Written(work.places.write(Path(os.path.abspath(work.source.path)), mark), "", True, tuple(fetch))]


def _remark(work: Translation, entries: list[Dataset], named: list[Dataset]) -> str:
    """A remark on the decisions for all entries."""
    if any(entry in named for entry in entries):
        return f"Rows are read as {file_name(work.source.path)} says, which must stay where it is."
    for entry in entries:
        # Axolotl formats the rows of instruction types by the type instead of a chat template.
        if entry.columns is not None and "assistant" in entry.columns.columns and entry.style is None:
            return f"The chat template formats the rows; the form of {entry.key} is not available."
    return ""


def take_parts(work: Translation, option: str, entries: list[Dataset], sources: list[Written]) -> None:
    """Convert slices of splits to ``data.weights``: as many rows, though not the same rows."""
    parted = [entry for entry in entries if any(source.part is not None for source in entry.sources)]
    train = work.value("data.train")
    problem = ""
    if option != "data.train":
        problem = "Evaluation takes eval.max_rows of all rows, not a part of a split."
    elif (train if len(sources) > 1 else [train]) != [source.text for source in sources]:
        problem = "Its data is not named."
    if problem or not parted:
        for entry in parted:
            work.drop(f"{entry.key}.split", problem)
        return
    counts: Sequence[int | None] = count_entries(work) or [None] * len(sources)
    shares: dict[Written, float | None] = {}
    for source, count in zip(sources, counts, strict=True):
        share = source.part.share(count) if source.part is not None else 1.0
        shares[source] = round(share, 6) if share is not None and share >= 1e-6 else None
    weights = [shares[source] or 1.0 for source in sources]
    for entry in parted:
        key = f"{entry.key}.split"
        if all(shares[source] is not None for source in entry.sources):
            work.change(key, "data.weights", weights, "As many rows of the split; train.seed decides which.")
        else:
            work.drop(key, "A part of a split whose rows cannot be counted: all are used.")


def _read(work: Translation, key: str) -> list[Dataset]:
    value = work.values.get(key)
    if value is None:
        return []
    if key == "pretraining_dataset" and isinstance(value, (str, dict)):
        value = [{"path": value} if isinstance(value, str) else value]
    hint = "Write - path: and type: below."
    if not isinstance(value, list):
        work.refuse(key, f"must be a list of datasets, not {shown(key, value)}", hint)
    found = []
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, dict):
            work.refuse(key, f"has an entry that is no table: {shown(key, entry)}", hint)
        if (dataset := _read_entry(work, f"{key}[{number}]", entry)) is not None:
            found.append(dataset)
    return found


def _read_entry(work: Translation, key: str, entry: Mapping[str, Any]) -> Dataset | None:
    given = {name: value for name, value in entry.items() if value is not None}
    work.inner |= {key: given, **{f"{key}.{name}": value for name, value in given.items()}}
    for name, value in given.items():
        if name in _IGNORED:
            work.drop(f"{key}.{name}", _IGNORED[name])
        elif name not in _ENTRY_KEYS:
            work.note_unknown(f"{key}.{name}", [f"{key}.{known}" for known in sorted(_ENTRY_KEYS)])
        elif name in _LEFT and value is not False:
            work.drop(f"{key}.{name}", REASONS["data"])
    if key.startswith("pretraining"):
        given = {"type": "pretrain", "field": given.get(_TEXT_COLUMN) or "text", **given}
    path = given.get("path")
    if path is None and given.get("data_files"):
        # Preferences could be given so, with the loader of the files as ds_type.
        path = next((name for name in (given.get("ds_type"),) if name in LOADERS), "json")
    if not isinstance(path, str) or not path.strip():
        work.drop(key, "It has no path.")
        return None
    given["path"] = path.strip()
    sources = read_sources(work, key, given)
    kind = given["type"] if isinstance(given.get("type"), str) else ""
    template = given.get("chat_template")
    if template != "tokenizer_default":
        given.pop("chat_template", None)
    if kind.partition(":")[0].partition(".")[0] == "chat_template":
        # Axolotl's loader ignores the rest of the name for supervised rows.
        given["type"] = "chat_template"
    is_whole = (
        template in (None, "tokenizer_default")
        and given.keys() <= KEYS
        and given.get("type") == entry.get("type")
        and entry.get("path") is not None
    )
    readable = {name: value for name, value in given.items() if name in KEYS}
    try:
        format_, columns = entry_reading(readable, key)
        plain = plain_columns(readable, key) if given.get("type") == "chat_template" else columns
    except UserError as error:
        work.drop(key, f"{error} Until then, its columns decide how it is read.")
        return Dataset(key, sources)
    needs_file = columns is not None and (type(plain) is not ColumnMap or bool(plain.constants))
    return Dataset(
        key,
        sources,
        format_,
        None if needs_file else plain,
        needs_file,
        is_readable=is_whole and key.startswith("datasets[") and _is_found(work, given, sources),
        style=_style(kind),
        template=template if isinstance(template, str) else None,
    )


def _is_found(work: Translation, entry: Mapping[str, Any], sources: list[Written]) -> bool:
    """True if our reader, which resolves paths relative to the file, finds the same rows."""
    file, split, path = Path(os.path.abspath(work.source.path)), str(entry.get("split") or ""), str(entry["path"])
    if file.suffix.lower() not in (".yml", ".yaml") or {"[", "+"} & set(split):
        return False
    if not all(source.is_read for source in sources):
        return False
    if file.parent == work.places.base or os.path.isabs(path):
        return True
    return not work.places.is_local(path) and not os.path.lexists(file.parent / path)


def _style(kind: str) -> str | None:
    """The built-in template nearest to the format of an instruction type."""
    name, _, style = kind.partition(":")
    if name in _ALPACA_TYPES:
        return _STYLES.get(style)
    return "vicuna" if name.startswith("alpaca_chat") else None


def named_files(*data: Any) -> Iterator[Any]:
    """Paths and names in the values of keys of datasets, as they are written there."""
    for entries in data:
        for entry in entries if isinstance(entries, list) else [entries]:
            files = entry.get("data_files") if isinstance(entry, dict) else None
            yield entry.get("path") if isinstance(entry, dict) else entry
            yield from files if isinstance(files, list) else [files]


def read_sources(work: Translation, key: str, entry: Mapping[str, Any]) -> list[Written]:
    """Files of an entry, or its part of a Hub dataset."""
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
    for name in _OF_HUB:
        if entry.get(name):
            work.drop(f"{key}.{name}", "It selects from a dataset of the Hub, and the data is on this machine.")
    if files:
        # Below a directory; an absolute file stands alone, and so does the path where it is the file itself.
        alone = [path in LOADERS or name == path or os.path.isabs(name) for name in files]
        names = [name if stands else f"{path.rstrip('/')}/{name}" for name, stands in zip(files, alone, strict=True)]
        if len(names) > 1 and not all(part.is_whole for part in parts):
            work.drop(f"{key}.split", "A part of several files together: all their rows are used.")
            parts = [Part("")]
        placed = [(name, "", part) for name in names for part in parts]
    else:
        marks = [f"#{part.split}" if part.split and _names_split(work, path, part.split) else "" for part in parts]
        placed = [(path, mark, part) for mark, part in zip(marks, parts, strict=True)]
    return list(
        dict.fromkeys(
            replace(write_file(work, name, mark), part=None if part.is_whole else part) for name, mark, part in placed
        )
    )


def _of_hub(key: str, entry: Mapping[str, Any], parts: Iterable[Part]) -> list[Written] | None:
    """Hub datasets of an entry; None if its path is not a Hub name."""
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
    """True if the split must be named: the directory has it, or is not downloaded yet."""
    if not work.places.exists(path):
        return split != "train" and not work.places.is_local(path)
    try:
        return work.places.locate(path).is_dir() and bool(list_shards(work.places.locate(path), split))
    except (UserError, OSError):
        return False


def _template(work: Translation, train: Sequence[Dataset]) -> None:
    """Convert the chat template, which the format of an instruction type overrides."""
    name, jinja, option = "chat_template", "chat_template_jinja", "template.name"
    styles = {entry.style for entry in train}
    if len(styles) == 1 and (style := next(iter(styles))) is not None:
        for key in (name, jinja):
            work.drop(key, f"The type of the datasets has a form of its own, and that counts in {work.title}.")
        work.put(option, style, f"The form of the type of {train[0].key} in {work.title}, or nearly so.")
        return
    for entry in train:
        if entry.template is not None and entry.template != work.values.get(name):
            ours = TEMPLATES.get(entry.template) if len({other.template for other in train}) == 1 else None
            if ours is not None:
                work.change(f"{entry.key}.{name}", option, ours, "It is the template of all rows here.")
            else:
                work.drop(f"{entry.key}.{name}", f"One dataset cannot have a template: {option} is for all rows.")
    text, given = work.text(jinja), work.values.get(name)
    if option in work.settings:
        work.drop(name, "The dataset's own counts.")
    elif isinstance(given, str) and given.startswith(_FALLBACK):
        ours = TEMPLATES.get(given.removeprefix(_FALLBACK))
        instead = f'set {option} = "{ours}"' if ours else "set template.file"
        work.note_change(name, option, f"The model's own is used; where it has none, {instead}.")
    elif text is None or given not in (None, "jinja"):
        _TEMPLATE.apply(work, name)
    if text is not None and work.is_done(name):
        work.drop(jinja, "It counts only with chat_template: jinja.")
    elif text is not None and "\n" not in text and "{" not in text and work.places.exists(text):
        work.change(jinja, "template.file", work.places.write(work.places.locate(text)), "A file.")
    work.drop(jinja, "Write it to a file, and name that in template.file.")
    work.keep(name)

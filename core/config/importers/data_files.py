"""Data files and datasets of hubs, as ``data.train`` and ``data.eval`` name them."""

from __future__ import annotations

from dataclasses import dataclass

from core.config.importers.redact import holds_secret, shown
from core.config.importers.translation import Translation

#: What stands in ``data.train`` where the file names no data.
PLACEHOLDER = "train.jsonl"


@dataclass(frozen=True)
class Written:
    """A source of rows as our configuration names it.

    Args:
        text: What stands in the configuration.
        note: What was decided about it; empty where it was copied.
        is_there: Whether there is something.
    """

    text: str
    note: str
    is_there: bool


def write_file(work: Translation, name: str, mark: str = "") -> Written:
    """A data file, a directory or a dataset of a hub.

    Args:
        work: The translation.
        name: As the tool names it.
        mark: What our reader takes behind the path, as ``#split``.
    """
    places, title = work.places, work.tool.title
    if "://" in name:
        return Written(name, f"{shown('path', name)} must be downloaded first; then name the file.", False)
    if not places.is_local(name):
        note = f"{shown('path', name, 60)} is a dataset of the Hub: download it to that directory, beside this file."
        return Written(f"{name}{mark}", note, False)
    path = places.locate(name)
    text = places.write(path, mark)
    if not places.exists(name):
        return Written(text, f"There is nothing at {shown('path', str(path), 120)}, where {title} would look.", False)
    is_same = str(path) == name
    note = "" if is_same else f"Paths start where {title} is run: {shown('path', str(places.base), 80)}."
    return Written(text, note, True)


def train_value(texts: list[str]) -> str | list[str]:
    """One entry as a text, several as a list."""
    return texts[0] if len(texts) == 1 else texts


def put_sources(work: Translation, key: str, option: str, sources: list[Written], also: str = "") -> None:
    """Set ``data.train`` or ``data.eval`` and note the key.

    Args:
        work: The translation.
        key: The key that names the sources.
        option: Ours.
        sources: At least one.
        also: What else was decided; it makes a copied key a changed one.
    """
    value = train_value([source.text for source in sources])
    notes = list(dict.fromkeys(note for note in (also, *(source.note for source in sources)) if note))
    reason = " ".join(notes[:3]) + (" And more like this." if len(notes) > 3 else "")
    if any(holds_secret(source.text, key) for source in sources):
        work.drop(key, "A path that holds a secret is not written; name the data by hand.")
        put_placeholder(work, option)
    elif not all(source.is_there for source in sources):
        work.drop(key, reason, option, value)
    elif reason:
        work.change(key, option, value, reason)
    else:
        work.carry(key, option, value)


def put_placeholder(work: Translation, option: str = "data.train") -> None:
    """Name a file that is not there, as a configuration must name its data."""
    if option == "data.train":
        work.put(option, PLACEHOLDER, "The file names no data that can be read here: put yours.")


def write_files(work: Translation, key: str, names: list[str]) -> None:
    """Plain names of files, as ``data.train``."""
    if names:
        put_sources(work, key, "data.train", [write_file(work, name) for name in names])
    else:
        work.change(key, "data.train", PLACEHOLDER, "The file names no data: put yours.")

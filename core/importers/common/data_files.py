"""Data files and hub datasets as entries of ``data.train`` and ``data.eval``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.errors import UserError
from core.hub.store import find_fetched
from core.hub_uri import HubEntry, is_hub_entry, is_hub_id, make_entry, parse_dataset
from core.importers.common.splits import Part
from core.importers.redact import holds_secret, shown
from core.importers.translation import Translation

#: The value of ``data.train`` where the file names no data.
PLACEHOLDER = "train.jsonl"
_HUB = "A dataset of the Hub, which is on this machine."


@dataclass(frozen=True)
class Written:
    """A source of rows as our configuration names it.

    Args:
        text: The entry in the configuration.
        note: The decision about it; empty where it was copied.
        is_read: Whether it can be read here, at once or after a download.
        fetch: The hub entry that must be downloaded first.
        part: The wanted part of it; None for all of it.
    """

    text: str
    note: str
    is_read: bool
    fetch: tuple[str, ...] = ()
    part: Part | None = None


def fetch_sentence(entries: Sequence[str], texts: Iterable[str] = ()) -> str:
    """A sentence with the command that downloads hub entries.

    Args:
        entries: The entries.
        texts: Texts next to the sentence, which need not be repeated.
    """
    if len(entries) == 1:
        return f"'localtune-tui fetch {entries[0]}' downloads it."
    if set(entries) <= set(texts):
        return "'localtune-tui fetch', once with each hf:// entry, downloads them."
    return f"'localtune-tui fetch', once with each of them, downloads {', '.join(entries)}."


def write_file(work: Translation, name: str, mark: str = "") -> Written:
    """A data file or a directory.

    Args:
        work: The translation.
        name: The tool's name for it.
        mark: A suffix that our reader takes after the path, as ``#split``.
    """
    places, title = work.places, work.title
    if "://" in name:
        return Written(name, f"{shown('path', name)} must be downloaded first; then name the file.", False)
    if not places.is_local(name):
        note = f"{shown('path', name, 60)} is not here; of a dataset of the Hub, write hf://datasets/owner/name."
        return Written(f"{name}{mark}", note, False)
    path = places.locate(name)
    text = places.write(path, mark)
    if not places.exists(name):
        return Written(text, f"There is nothing at {shown('path', str(path), 120)}, where {title} would look.", False)
    is_same = str(path) == name
    note = "" if is_same else f"Paths start where {title} is run: {shown('path', str(places.base), 80)}."
    return Written(text, note, True)


def write_dataset(work: Translation, name: str) -> Written:
    """A path if it exists, else a dataset of the Hub, of which the split ``train`` is taken."""
    if work.places.is_local(name) or not (is_hub_entry(name) or is_hub_id(name)):
        return write_file(work, name)
    try:
        return write_entry(parse_dataset(name) if is_hub_entry(name) else make_entry(name, split="train"))
    except UserError as error:
        return Written(name, str(error), False)


def write_entry(entry: HubEntry, text: str = "") -> Written:
    """A dataset of the Hub.

    Args:
        entry: The wanted part of the dataset.
        text: Its text in the configuration; the entry by default.
    """
    try:
        find_fetched(entry)
        missing: tuple[str, ...] = ()
    except UserError:
        # Also where the wanted split is unclear: the command then reports it, with the choices.
        missing = (str(entry),)
    return Written(text or str(entry), "" if missing else _HUB, True, missing)


def put_sources(work: Translation, key: str, option: str, sources: list[Written], also: str = "") -> None:
    """Set ``data.train`` or ``data.eval`` and record the key.

    Args:
        work: The translation.
        key: The key that names the sources.
        option: Our option.
        sources: At least one.
        also: Any other decision; it makes a copied key a changed one.
    """
    texts = [source.text for source in sources]
    value = texts[0] if len(texts) == 1 else texts
    wanted = list(dict.fromkeys(entry for source in sources for entry in source.fetch))
    first = fetch_sentence(wanted, texts) if wanted else ""
    notes = list(dict.fromkeys(note for note in (first, also, *(source.note for source in sources)) if note))
    reason = " ".join(notes[:3]) + (" And more like this." if len(notes) > 3 else "")
    if any(holds_secret(source.text, key) for source in sources):
        work.drop(key, "A path that holds a secret is not written; name the data by hand.")
        put_placeholder(work, option)
    elif not all(source.is_read for source in sources):
        work.drop(key, reason, option, value)
    elif reason:
        work.change(key, option, value, reason)
    else:
        work.carry(key, option, value)


def put_placeholder(work: Translation, option: str = "data.train") -> None:
    """Name a missing file as a placeholder, as a configuration must name its data."""
    if option == "data.train":
        work.put(option, PLACEHOLDER, "The file names no data that can be read here: put yours.")

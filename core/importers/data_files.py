"""Data of another tool as entries of ``data.train`` and ``data.eval``, and intervals in steps."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.config.schema import TrainSection
from core.data.registries.resolve import resolve_source
from core.errors import UserError
from core.hub.store import find_fetched
from core.hub_uri import HubEntry, absolute, is_hub_entry, is_hub_id, make_entry, parse_dataset
from core.importers.redact import holds_secret, shown
from core.importers.translation import Translation

#: The value of ``data.train`` where the file names no data.
PLACEHOLDER = "train.jsonl"
#: Most bytes of data files whose rows are counted; larger files would keep the user waiting.
COUNTED_BYTES = 256 << 20

# Compressed files, and the cost of their bytes in bytes of text.
_PACKED, _UNPACKING = (".gz", ".zst", ".parquet", ".arrow", ".feather"), 8
_PART = re.compile(r"([^\[\]+]*)(?:\[\s*(-?\d+)?\s*(%)?\s*:\s*(-?\d+)?\s*(%)?\s*\])?")
_UNKNOWN = "The rows cannot be counted before the data is here (import again then)"
#: Behavior with an unknown interval, by option.
INSTEAD = {
    "eval.every_steps": "evaluation is at the end. Set eval.every_steps.",
    "checkpoint.every_steps": "ten checkpoints in a run. Set checkpoint.every_steps.",
}


# Sources.


@dataclass(frozen=True)
class Part:
    """A slice of a split, in the syntax of ``datasets``: ``train``, ``train[:10%]``.

    Args:
        split: Name of the split.
        begin: First row, or percent of the rows.
        end: End, exclusive; None for the end of the split.
        is_percent: True if ``begin`` and ``end`` are percents.
    """

    split: str
    begin: int = 0
    end: int | None = None
    is_percent: bool = False

    @property
    def is_whole(self) -> bool:
        """True for the whole split."""
        return self.begin == 0 and (self.end is None or (self.is_percent and self.end == 100))

    def share(self, rows: int | None) -> float | None:
        """Share of the split; None if it depends on an unknown number of rows."""
        rows = 100 if self.is_percent else rows
        if rows is None or rows < 1:
            return None
        begin, end, _ = slice(self.begin, self.end).indices(rows)
        return max(end - begin, 0) / rows


def read_splits(text: str) -> list[Part]:
    """Slices named by a ``split``, such as ``train+test``.

    Raises:
        ValueError: If the text is not valid.
    """
    parts = []
    for piece in text.split("+"):
        found = _PART.fullmatch(piece.strip())
        if found is None or (found[3] and found[5] is None and found[4]) or (found[5] and found[2] and not found[3]):
            raise ValueError(text)
        end = int(found[4]) if found[4] is not None else None
        parts.append(Part(found[1].strip(), int(found[2] or 0), end, bool(found[3] or found[5])))
    return parts


@dataclass(frozen=True)
class Written:
    """A source of rows in our configuration.

    Args:
        text: Entry of ``data.train`` or ``data.eval``.
        note: A sentence on a decision; empty if it was copied.
        is_read: True if it can be read, at once or after a download.
        fetch: Hub entries to download first.
        part: Slice of it; None for all rows.
    """

    text: str
    note: str
    is_read: bool
    fetch: tuple[str, ...] = ()
    part: Part | None = None


def write_file(work: Translation, name: str, mark: str = "") -> Written:
    """A data file or a directory.

    Args:
        work: The translation.
        name: Its name in the tool's file.
        mark: Suffix for our reader, such as ``#split``.
    """
    places = work.places
    if "://" in name:
        return Written(name, f"{shown('path', name)} must be downloaded first; then name the file.", False)
    if not places.is_local(name):
        note = f"{shown('path', name, 60)} is not here; for a dataset of the Hub, write hf://datasets/owner/name."
        return Written(f"{name}{mark}", note, False)
    path = places.locate(name)
    text = places.write(path, mark)
    if not places.exists(name):
        return Written(text, f"There is nothing at {shown('path', str(path), 120)}.", False)
    return Written(text, "" if str(path) == name else relative_to(work), True)


def relative_to(work: Translation) -> str:
    """A sentence on the base directory of relative paths."""
    return f"Paths are relative to {shown('path', str(work.places.base), 80)}."


def write_dataset(work: Translation, name: str) -> Written:
    """A path if it exists, else the split ``train`` of a Hub dataset."""
    if work.places.is_local(name) or not (is_hub_entry(name) or is_hub_id(name)):
        return write_file(work, name)
    try:
        return write_entry(parse_dataset(name) if is_hub_entry(name) else make_entry(name, split="train"))
    except UserError as error:
        return Written(name, str(error), False)


def write_entry(entry: HubEntry) -> Written:
    """A Hub dataset."""
    try:
        find_fetched(entry)
    except UserError:
        # Also if the split is unclear: the fetch command then lists the choices.
        return Written(str(entry), "", True, (str(entry),))
    return Written(str(entry), "A dataset of the Hub, which is on this machine.", True)


def put_sources(work: Translation, key: str, option: str, sources: list[Written], also: str = "") -> None:
    """Set ``data.train`` or ``data.eval`` and record the key.

    Args:
        work: The translation.
        key: Key that names the sources.
        option: Our option.
        sources: The sources, at least one.
        also: A sentence on another decision; it makes a copied key a changed key.
    """
    texts = [source.text for source in sources]
    value = texts[0] if len(texts) == 1 else texts
    wanted = list(dict.fromkeys(entry for source in sources for entry in source.fetch))
    notes = [_fetch(wanted, texts) if wanted else "", also, *(source.note for source in sources)]
    notes = list(dict.fromkeys(note for note in notes if note))
    reason = " ".join(notes[:3]) + (" And more like this." if len(notes) > 3 else "")
    if any(holds_secret(source.text, key) for source in sources):
        work.drop(key, "A path that holds a secret is not written; name the data by hand.")
        if option == "data.train":
            work.put(option, PLACEHOLDER, "The file names no data that can be read here: put yours.")
    elif all(source.is_read for source in sources):
        work.take(key, option, value, reason)
    else:
        work.drop(key, reason, option, value)


def _fetch(entries: Sequence[str], texts: Iterable[str]) -> str:
    """A sentence with the command that downloads Hub entries; ``texts`` are the entries shown beside it."""
    if len(entries) == 1:
        return f"'localtune-tui fetch {entries[0]}' downloads it."
    if set(entries) <= set(texts):
        return "'localtune-tui fetch', once with each hf:// entry, downloads them."
    return f"'localtune-tui fetch', once with each of them, downloads {', '.join(entries)}."


# Rows and steps.


def count_entries(work: Translation) -> list[int] | None:
    """Rows of each entry of ``data.train``; None if an entry cannot be counted.

    Missing, damaged, large, or not yet downloaded files are not counted. ``data.train`` must be set already.
    """
    train = work.value("data.train")
    if train is None:
        return None
    entries = train if isinstance(train, list) else [train]
    names = tuple(absolute(entry, work.places.home or Path.cwd()) for entry in entries)
    if names not in work.counted:
        work.counted[names] = _count(names)
    return work.counted[names]


def _count(names: Sequence[str]) -> list[int] | None:
    found, room = [], COUNTED_BYTES
    try:
        for name in names:
            rows = 0
            for source in resolve_source(name):
                files = source.files or (source.path,)
                factor = _UNPACKING if files[0].suffix.lower() in _PACKED else 1
                if sum(os.path.getsize(file) for file in files if os.path.isfile(file)) * factor > room:
                    return None
                with source.open() as file:
                    room -= file.size * factor
                    if room < 0:
                        return None
                    file.index()
                    rows += source.count(file)
            found.append(rows)
    except (UserError, OSError, ValueError):
        # The run itself reports errors in the files.
        return None
    return found if sum(found) else None


def count_rows(work: Translation) -> int | None:
    """Estimated rows of an epoch, without held-out rows, weighted by ``data.weights``; None if unknown."""
    entries = count_entries(work)
    if entries is None:
        return None
    total, share = sum(entries), work.value("data.eval_share") or 0.0
    weights = work.value("data.weights") or [1.0] * len(entries)
    left = 1 - (max(round(share * total), 1) if share else 0) / total
    used: int = sum(round(count * left * weight) for count, weight in zip(entries, weights, strict=True))
    return max(used, 1)


def every(work: Translation, key: str, option: str, epochs: float | None = None) -> None:
    """Convert an interval in steps; a value below 1 is a share of all steps.

    Args:
        work: The translation.
        key: Key of the number.
        option: Our option.
        epochs: Epochs of the run, for a run without ``max_steps``; None if unknown.
    """
    steps = work.number(key)
    if steps is None or steps <= 0:
        work.keep(key)
    elif steps >= 1:
        work.carry(key, option, int(steps))
    elif (total := _most_steps(work)) is not None:
        work.change(key, option, _whole(steps * total), f"{steps:g} of {total} steps.")
    elif epochs is not None and (found := _steps_of_epoch(work)) is not None:
        total, reason = _whole(found[0] * epochs), found[1]
        work.change(key, option, _whole(steps * total), f"{steps:g} of {total} steps: {epochs:g} epochs of {reason}.")
    else:
        work.drop(key, f"A share of a number of steps. {_UNKNOWN}: {INSTEAD[option]}")


def per_epoch(work: Translation, key: str, option: str, times: float, epochs: float | None = None) -> None:
    """Convert a number of times per epoch to an interval in steps.

    Args:
        work: The translation.
        key: Key that asks for it.
        option: Our option, in steps.
        times: Times per epoch.
        epochs: Epochs that the tool divides a run of ``max_steps`` into; None if it does not.
    """
    total = _most_steps(work)
    if total is not None and epochs:
        # Axolotl takes a share of the steps, regardless of the rows.
        number = _whole(total / times / epochs)
        work.change(key, option, number, f"{total} steps / {times:g} times in each of {epochs:g} epochs.")
    elif (found := _steps_of_epoch(work)) is not None:
        often = "Once" if times == 1 else f"{times:g} times"
        sentence = f"{often} in an epoch of {found[1]} = {found[0]} steps."
        work.change(key, option, _whole(found[0] / times), sentence)
    else:
        work.drop(key, f"{_UNKNOWN}: {INSTEAD[option]}")


def _steps_of_epoch(work: Translation) -> tuple[int, str] | None:
    """Steps of an epoch, and the computation in words; ``train.batch_size`` must be set already."""
    rows = count_rows(work)
    if rows is None:
        return None
    batch = work.value("train.batch_size") or TrainSection().batch_size
    return math.ceil(rows / batch), f"{rows} rows / batch size {batch}"


def _whole(number: float) -> int:
    """A finite number of steps, at least one."""
    return max(math.ceil(min(number, 1e12)), 1)


def _most_steps(work: Translation) -> int | None:
    total = work.values.get("max_steps")
    return total if isinstance(total, int) and not isinstance(total, bool) and total > 0 else None

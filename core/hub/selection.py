"""File selection: the files of a repository that an entry takes, from their names and the dataset card."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath, PurePosixPath
from typing import Any

from core.errors import UserError
from core.hub_uri import HubEntry, why_unsafe
from core.models.description import RECORD_NAME
from core.path_kind import ROW_SUFFIXES
from core.text import one_line
from core.units import counted

#: Most files read of one dataset; each is kept open.
MOST_SHARDS = 512
#: Aliases of splits, and the names used here.
SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}

_SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=[-_./0-9]|$)", re.IGNORECASE)
_PACKED = (".gz", ".gzip", ".zst", ".zstd")
_DATA = frozenset(ROW_SUFFIXES).difference(_PACKED)
# Files next to data files that hold no rows.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "readme.txt", "license.txt"}


def is_data_name(name: str) -> bool:
    """True if a file has a name like a data file."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _DATA


def holds_rows(name: str) -> bool:
    """True if a file is named like a data file, and not like a description of one."""
    return is_data_name(name) and PurePath(name).name.lower() not in _ABOUT


def split_of(path: PurePath) -> str:
    """The split in a relative path (``train``, ``test``, ``validation``); empty if there is none."""
    found = _SPLIT.findall(path.as_posix())
    return SPLIT_NAMES.get(found[-1].lower(), found[-1].lower()) if found else ""


def ending(path: PurePath) -> str:
    """Extension that identifies the file type: ``.jsonl``, or ``.jsonl.gz`` if compressed."""
    last = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() + last if last in _PACKED else last


def natural(path: PurePath) -> list[tuple[int, int, str]]:
    """Natural sort key of a path: numbers in names compare as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


_SHOWN = 12
# The metadata of a card is untrusted: limits on its patterns, ...
_MOST_PATTERNS = 10_000
_LONGEST_PATTERN = 1024
# ... and on comparisons of pattern parts with name parts, which take some seconds.
_MOST_COMPARISONS = 5_000_000
# Most names searched for a suggestion.
_MOST_NEAR = 1000


@dataclass(frozen=True)
class Subset:
    """A subset of a dataset declared in its card (a ``config`` there).

    Args:
        name: Name of the subset.
        default: Whether it is the default.
        splits: File patterns of each split by name.
    """

    name: str
    default: bool
    splits: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Selection:
    """Files selected, in order, and a description of the selection in a sentence."""

    names: tuple[str, ...]
    reason: str


def data_names(names: Iterable[str]) -> list[str]:
    """Files of a repository that may hold rows, in natural order.

    Raises:
        UserError: If one could not be stored in a directory with the others.
    """
    found = [name for name in names if holds_rows(PurePosixPath(name).name)]
    if unsafe := next((name for name in found if why_unsafe(name)), None):
        raise UserError(
            f"The repository has a file called {one_line(unsafe, 120)}, which {why_unsafe(unsafe)}.",
            "Do not use this repository.",
        )
    visible = [name for name in found if not _is_reserved(name)]
    directories = {str(parent) for name in visible for parent in PurePosixPath(name).parents}
    if both := next((name for name in visible if name in directories), None):
        raise UserError(
            f"The repository has {one_line(both, 120)} both as a file and as a directory.",
            "Do not use this repository.",
        )
    return sorted(visible, key=lambda name: natural(PurePosixPath(name)))


def _is_reserved(name: str) -> bool:
    """True if a name is hidden, or reserved for the record stored with a repository's files."""
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or parts[0].casefold() == RECORD_NAME


def read_subsets(card: Any) -> list[Subset]:
    """Subsets declared under ``configs`` in a dataset's card; invalid ones are ignored.

    Raises:
        UserError: If there are more than are supported.
    """
    declared = card.get("configs") if isinstance(card, Mapping) else None
    found: list[Subset] = []
    room = _MOST_PATTERNS
    for item in declared if isinstance(declared, list) else ():
        if not isinstance(item, Mapping):
            continue
        splits = _read_splits(item.get("data_files"), item.get("data_dir"))
        room -= sum(map(len, splits.values()))
        if room < 0:
            raise UserError(
                f"The dataset's card names more than {_MOST_PATTERNS} files or patterns.", "Use another revision."
            )
        if splits:
            name = item.get("config_name")
            found.append(Subset(name if isinstance(name, str) else "default", item.get("default") is True, splits))
    return found


def select(entry: HubEntry, names: Sequence[str], subsets: Sequence[Subset]) -> Selection:
    """Select the files that an entry takes.

    A path selects the files it names. Without a path, the card's subset decides, or else the file names: the split
    named after ``#``, else the split ``train``, else all files if no name has a split.

    Args:
        entry: The entry.
        names: The data files of its repository, from :func:`data_names`.
        subsets: Subsets declared in the card.

    Raises:
        UserError: If it selects no file, files of several kinds, too many, or if the choice is ambiguous.
    """
    if not names:
        raise UserError(
            f"{_repository(entry)} has no data files of a kind that is read.",
            "If it is made by a script, its tables may be at @refs/convert/parquet.",
        )
    if entry.path:
        selection = _by_path(entry, names)
    elif subsets:
        selection = _by_card(entry, names, subsets)
    else:
        selection = _by_names(entry, names)
    return _of_one_kind(entry, selection)


def _by_path(entry: HubEntry, names: Sequence[str]) -> Selection:
    if entry.path in names:
        return Selection((entry.path,), "Its path names the file.")
    if re.search(r"[*?\[]", entry.path):
        matched = _matching(entry, [entry.path], names)
        if not matched:
            raise UserError(f"{entry} matches no data file.", _known(names))
        return Selection(tuple(matched), f"Its pattern matches {len(matched)} of {_count(names)}.")
    below = [name for name in names if name.startswith(f"{entry.path}/")]
    if not below:
        near = difflib.get_close_matches(entry.path, names[:_MOST_NEAR], n=1, cutoff=0.6)
        hint = f"Did you mean {one_line(near[0], 120)}?" if near else _known(names)
        raise UserError(f"{_repository(entry)} has no data file at {one_line(entry.path, 120)}.", hint)
    return _by_names(entry, below)


def _by_card(entry: HubEntry, names: Sequence[str], subsets: Sequence[Subset]) -> Selection:
    subset, split = _named_subset(entry, subsets)
    if subset is None:
        defaults = [item for item in subsets if item.default] or [item for item in subsets if item.name == "default"]
        subset = next(iter(defaults or (subsets if len(subsets) == 1 else ())), None)
    if subset is None:
        known = _listed(item.name for item in subsets)
        raise UserError(
            f"{_repository(entry)} has the subsets {known}.", f"Name one: {_with_part(entry, subsets[0].name)}."
        )
    split = _pick_split(entry, split, list(subset.splits), subset.name if len(subsets) > 1 else "")
    patterns = subset.splits[split]
    taken = _matching(entry, patterns, names)
    if not taken:
        raise UserError(
            f"{_repository(entry)}: its card names no data file for the split {one_line(split, 60)}.",
            f"Name the files by their path. {_known(names)}",
        )
    of_subset = f" of the subset {one_line(subset.name, 60)}" if len(subsets) > 1 else ""
    return Selection(tuple(taken), f"The split {one_line(split, 60)}{of_subset} is {len(taken)} of {_count(names)}.")


def _named_subset(entry: HubEntry, subsets: Sequence[Subset]) -> tuple[Subset | None, str]:
    """The subset named after ``#``, if any, and the split."""
    first, slash, split = entry.part.partition("/")
    named = next((subset for subset in subsets if subset.name == first), None)
    if named is not None or not slash:
        return named, split if named is not None else first
    known = _listed(item.name for item in subsets)
    raise UserError(f"{_repository(entry)} has no subset {one_line(first, 60)}.", f"It has {known}.")


def _pick_split(entry: HubEntry, wanted: str, known: Collection[str], subset: str = "") -> str:
    """Choose the split among the known ones.

    Raises:
        UserError: If there is none of that name, or none is named and the choice is ambiguous.
    """
    if not wanted:
        if "train" in known:
            return "train"
        if len(known) == 1:
            return next(iter(known))
        first = next(iter(known))
        raise UserError(
            f"{_repository(entry)} has the splits {_listed(known)}.",
            f"Name one: {_with_part(entry, f'{subset}/{first}' if subset else first)}.",
        )
    for name in (wanted, SPLIT_NAMES.get(wanted, wanted)):
        if name in known:
            return name
    raise UserError(f"{_repository(entry)} has no split {one_line(wanted, 60)}.", f"It has {_listed(known)}.")


def _by_names(entry: HubEntry, names: Sequence[str]) -> Selection:
    first, slash, split = entry.part.partition("/")
    prefix = f"{entry.path}/" if entry.path else ""
    pool, of_directory = list(names), ""
    known = sorted({split_of(_below(name, prefix)) for name in names} - {""})
    # Files without a split in their names are all for training.
    is_split = SPLIT_NAMES.get(first, first) in (known or ["train"])
    if first and (slash or not is_split):
        # Not the name of a split, so a directory, which is how subsets without a card are stored.
        pool = [name for name in names if name.startswith(f"{prefix}{first}/")]
        if not pool:
            kinds = _listed(known) if known else "none that its file names tell"
            raise UserError(f"{_repository(entry)} has no split {one_line(first, 60)}.", f"It has {kinds}.")
        of_directory = f" of {one_line(first, 60)}"
        prefix = f"{prefix}{first}/"
    else:
        split = first
    splits = {name: split_of(_below(name, prefix)) for name in pool}
    told = list(dict.fromkeys(filter(None, splits.values())))
    if not told and split in ("", "train"):
        return Selection(tuple(pool), f"No file name tells a split, so all of {_count(pool)} are read.")
    chosen = _pick_split(entry, split, told)
    taken = [name for name in pool if splits[name] == chosen]
    return Selection(tuple(taken), f"The split {chosen}{of_directory} is {len(taken)} of {_count(names)}.")


def _of_one_kind(entry: HubEntry, selection: Selection) -> Selection:
    """The selection without files of other kinds, such as a list of requirements next to tables."""
    kinds: dict[str, list[str]] = {}
    for name in selection.names:
        kinds.setdefault(ending(PurePosixPath(name)), []).append(name)
    taken = selection
    if len(kinds) > 1:
        rows = {kind: found for kind, found in kinds.items() if kind not in (".txt", ".json")}
        if len(rows) != 1:
            raise UserError(
                f"{entry} takes files of several kinds ({', '.join(sorted(kinds))}).",
                f"Name those of one kind by a path. {_known(selection.names)}",
            )
        (kind,) = rows
        left = len(selection.names) - len(rows[kind])
        taken = Selection(
            tuple(rows[kind]), f"{selection.reason} Of these, the {kind} files are read and {left} others are not."
        )
    if len(taken.names) > MOST_SHARDS:
        raise UserError(
            f"{entry} takes {len(taken.names)} files, and {MOST_SHARDS} of one dataset are read.",
            f"Name some of them by a path, such as {one_line(taken.names[0], 120)}.",
        )
    return taken


def _read_splits(files: Any, directory: Any) -> dict[str, list[str]]:
    prefix = f"{directory.strip('/')}/" if isinstance(directory, str) and directory.strip("/") else ""
    if len(prefix) > _LONGEST_PATTERN:
        return {}
    if files is None:
        return {"train": [f"{prefix}**"]} if prefix else {}
    items: Iterable[tuple[Any, Any]]
    if isinstance(files, Mapping):
        items = files.items()
    elif isinstance(files, list) and any(isinstance(item, Mapping) for item in files):
        items = [(item.get("split"), item.get("path")) for item in files if isinstance(item, Mapping)]
    else:
        items = [("train", files)]
    splits: dict[str, list[str]] = {}
    for split, patterns in items:
        texts = [patterns] if isinstance(patterns, str) else patterns if isinstance(patterns, list) else []
        plain = [text.removeprefix("./") for text in texts if isinstance(text, str) and "://" not in text]
        kept = [prefix + text for text in plain if len(prefix) + len(text) <= _LONGEST_PATTERN]
        if isinstance(split, str) and split and kept:
            splits.setdefault(split, []).extend(kept)
    return splits


def _matching(entry: HubEntry, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names that match any of the patterns, in order.

    Raises:
        UserError: If there are too many comparisons.
    """
    plain = {pattern for pattern in patterns if not re.search(r"[*?\[]", pattern)}
    others = [pattern for pattern in dict.fromkeys(patterns) if pattern not in plain]
    parts = sum(pattern.count("/") + 1 for pattern in others)
    if parts * sum(name.count("/") + 1 for name in names) > _MOST_COMPARISONS:
        raise UserError(
            f"{_repository(entry)} has {_count(names)} and {counted(len(others), 'pattern')}, too many to compare.",
            "Name the files by a path without a pattern.",
        )
    return [name for name in names if name in plain or any(_matches(pattern, name) for pattern in others)]


def _matches(pattern: str, name: str) -> bool:
    """True if a hub glob pattern matches a file: ``*`` stays in a directory, ``**`` matches any number of
    directories."""
    parts = pattern.split("/")
    # All pattern positions reachable after the directories so far, so that matching takes linear time.
    places = _passing({0}, parts)
    for segment in name.split("/"):
        reached = set()
        for place in places:
            if place < len(parts) and parts[place] == "**":
                reached.add(place)
            elif place < len(parts) and fnmatchcase(segment, parts[place]):
                reached.add(place + 1)
        places = _passing(reached, parts)
    return len(parts) in places


def _passing(places: set[int], parts: Sequence[str]) -> set[int]:
    """Positions, and those reachable from them by a ``**`` that matches nothing."""
    reached = set(places)
    for place, part in enumerate(parts):
        if place in reached and part == "**":
            reached.add(place + 1)
    return reached


def _below(name: str, prefix: str) -> PurePosixPath:
    return PurePosixPath(name.removeprefix(prefix))


def _repository(entry: HubEntry) -> str:
    return str(HubEntry(entry.kind, entry.repository, entry.revision))


def _with_part(entry: HubEntry, part: str) -> str:
    return str(HubEntry(entry.kind, entry.repository, entry.revision, entry.path, one_line(part, 60)))


def _count(names: Sequence[str]) -> str:
    return counted(len(names), "data file")


def _listed(names: Iterable[str]) -> str:
    shown = [one_line(name, 60) for name in names]
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def _known(names: Sequence[str]) -> str:
    return f"It has {_listed(names)}."

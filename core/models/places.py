"""Places of base models on this machine: prepared models, the Hugging Face cache, directories and Ollama's store.

Only names and a few small files are read; :mod:`core.models.inspection` reads the models. Listings are bounded in
number, depth and time, because these directories may contain anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from core.hub_uri import HubEntry, is_hub_id
from core.models.description import PICKLES, TOKENIZERS
from core.models.find import (
    STARTER_NAME,
    cached_directory,
    cached_models,
    find_fetched_model,
    find_in_hub_cache,
    model_entry,
    prepared_models,
)
from core.paths import models_dir, shown_path, user_path
from core.small_files import read_small

Source = Literal["starter", "prepared", "hub cache", "directory", "ollama"]

#: Most directory entries looked at in one scan and of one directory, most models found, and most seconds.
MOST_ENTRIES, MOST_OF_ONE, MOST_MODELS, MOST_SECONDS = 100_000, 5000, 1000, 10.0
#: Levels of directories below a searched one: ``~/models/owner/name``.
DEPTH = 2
#: Directories that hold no models and many files.
_SKIPPED = frozenset({"node_modules", "site-packages", "__pycache__", "venv", "checkpoints"})
_LATER_PART = re.compile(r"-(?!0*1-of-)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_WEIGHTS = (".safetensors", *PICKLES)

#: Layer of an Ollama manifest with the model's GGUF file.
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_OLLAMA_STORES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models")
#: Parts of the manifests of Ollama's own registry, which it does not show.
_OLLAMA_REGISTRY, _OLLAMA_OWNER = "registry.ollama.ai", "library"
_MANIFEST_LIMIT = 1 << 20
#: Levels of a manifest's path: registry, owner, model and tag; owners may be nested.
_MANIFEST_DEPTH = 6


@dataclass(frozen=True)
class FoundModel:
    """A model on this machine, as yet unread.

    Args:
        name: Its name for display.
        base: Its value for ``model.base``; an absolute path for a model that has no name.
        path: Its directory, or its GGUF file.
        source: The kind of place.
        place: The place in a word or two.
    """

    name: str
    base: str
    path: Path
    source: Source
    place: str

    @property
    def has_name(self) -> bool:
        """True if ``base`` is a name, not a path."""
        return not os.path.isabs(self.base)


@dataclass(frozen=True)
class UnreadPlace:
    """A place that cannot be searched, with the reason."""

    path: Path
    sentence: str


class Scan:
    """The bounds of a search for models.

    Args:
        stop: Whether it has been given up.
    """

    def __init__(self, stop: Callable[[], bool] = lambda: False) -> None:
        self._stop = stop
        self._end = time.monotonic() + MOST_SECONDS
        self._entries = MOST_ENTRIES

    @property
    def is_over(self) -> bool:
        """True if the search should end."""
        return self._entries <= 0 or time.monotonic() > self._end or self._stop()

    def listed(self, directory: Path) -> list[os.DirEntry[str]]:
        """The entries of a directory by name, the visible ones.

        Raises:
            OSError: If it cannot be read.
        """
        found = []
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                self._entries -= 1
                if number >= MOST_OF_ONE or self.is_over:
                    break
                if not entry.name.startswith("."):
                    found.append(entry)
        return sorted(found, key=lambda entry: entry.name)


def find_models(
    directories: Iterable[Path], stop: Callable[[], bool] = lambda: False
) -> Iterator[FoundModel | UnreadPlace]:
    """All models on this machine, the prepared ones first; each once.

    Args:
        directories: Directories to search besides the known places; models may be a few levels below them.
        stop: Whether the search has been given up.
    """
    scan, seen = Scan(stop), set[str]()
    searches = (
        _prepared(),
        _cached(scan),
        *(_below(scan, directory) for directory in directories),
        *(_ollama(scan, store) for store in ollama_stores()),
    )
    for search in searches:
        for item in search:
            if scan.is_over or len(seen) >= MOST_MODELS:
                return
            real = os.path.realpath(item.path)
            if real not in seen:
                seen.add(real)
                yield item


def _prepared() -> Iterator[FoundModel]:
    starter = models_dir() / STARTER_NAME
    if not os.path.isdir(starter):
        yield FoundModel(STARTER_NAME, STARTER_NAME, starter, "starter", "first run")
    for name, directory in prepared_models():
        yield FoundModel(name.removeprefix("hf://"), name, directory, "prepared", "prepared")


# The Hugging Face cache.


def _cached(scan: Scan) -> Iterator[FoundModel]:
    """Models in the Hugging Face cache: the snapshot of the bare id, else any other; and their GGUF files."""
    for repository in cached_models():
        entry = HubEntry("model", repository)
        if find_fetched_model(entry) is not None:
            continue
        for revision in ["", *_revisions(scan, repository)]:
            named = HubEntry("model", repository, revision)
            snapshot = find_in_hub_cache(named)
            if snapshot is None:
                continue
            with contextlib.suppress(OSError):
                yield from _in_snapshot(scan, repository if not revision else str(named), snapshot)
            break


def _revisions(scan: Scan, repository: str) -> list[str]:
    """Branches, tags and commits of a model in the cache."""
    place = cached_directory(HubEntry("model", repository))
    found = []
    for part in ("refs", "snapshots"):
        with contextlib.suppress(OSError):
            found += [entry.name for entry in scan.listed(place / part)]
    return found


def _in_snapshot(scan: Scan, base: str, snapshot: Path) -> Iterator[FoundModel]:
    entries = scan.listed(snapshot)
    name = base.removeprefix("hf://")
    if _looks_like_model({entry.name for entry in entries}):
        yield FoundModel(name, base, snapshot, "hub cache", "HF cache")
    for entry in entries:
        inside = [entry]
        if entry.is_dir():
            with contextlib.suppress(OSError):
                inside = scan.listed(Path(entry.path))
        for file in inside:
            if _is_gguf(file):
                yield FoundModel(file.name, file.path, Path(file.path), "hub cache", "HF cache")


# Directories.


def _below(scan: Scan, directory: Path, depth: int = DEPTH) -> Iterator[FoundModel | UnreadPlace]:
    """Models in a directory and its subdirectories. Links to directories are followed only to a model."""
    try:
        entries = scan.listed(directory)
    except OSError as error:
        if depth == DEPTH and not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            yield UnreadPlace(directory, f"{shown_path(directory)} cannot be searched: {error.strerror}.")
        return
    if _looks_like_model({entry.name for entry in entries}):
        yield FoundModel(directory.name, str(directory), directory, "directory", shown_path(directory.parent))
    for entry in entries:
        if _is_gguf(entry):
            yield FoundModel(entry.name, entry.path, Path(entry.path), "directory", shown_path(directory))
    if depth:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name not in _SKIPPED and entry.is_dir():
                    # A link's subdirectories are not searched: it may lead anywhere, even in a cycle.
                    yield from _below(scan, Path(entry.path), 0 if entry.is_symlink() else depth - 1)


def _looks_like_model(names: set[str]) -> bool:
    """True if a directory has the files of a model, complete or not. Other programs have a ``config.json`` too."""
    has_weights = any(name.endswith(_WEIGHTS) for name in names) or "model.safetensors.index.json" in names
    return "config.json" in names and (has_weights or not names.isdisjoint(TOKENIZERS))


def _is_gguf(entry: os.DirEntry[str]) -> bool:
    """True for a GGUF file by its name; for a split file only the first part."""
    with contextlib.suppress(OSError):
        return entry.name.lower().endswith(".gguf") and not _LATER_PART.search(entry.name) and entry.is_file()
    return False


# Ollama.


def ollama_stores() -> list[Path]:
    """Places where Ollama keeps its models."""
    if explicit := os.environ.get("OLLAMA_MODELS"):
        return [user_path(explicit).absolute()]
    return [user_path(store) for store in _OLLAMA_STORES]


def _ollama(scan: Scan, store: Path) -> Iterator[FoundModel | UnreadPlace]:
    manifests = store / "manifests"
    try:
        os.stat(store / "blobs")
        found = list(_manifests(scan, manifests, _MANIFEST_DEPTH))
    except PermissionError as error:
        yield UnreadPlace(store, f"Ollama's store in {shown_path(store)} cannot be read: {error.strerror}.")
        return
    except OSError:
        return
    closed = 0
    for manifest in found:
        blob = _model_blob(store, manifest)
        if blob is None:
            continue
        if not os.access(blob, os.R_OK):
            closed += 1
            continue
        yield FoundModel(_ollama_name(manifest.relative_to(manifests)), str(blob), blob, "ollama", "Ollama")
    if closed:
        models = "1 model" if closed == 1 else f"{closed} models"
        yield UnreadPlace(store / "blobs", f"{models} of Ollama in {shown_path(store)} cannot be read by this user.")


def _manifests(scan: Scan, directory: Path, depth: int) -> Iterator[Path]:
    for entry in scan.listed(directory):
        with contextlib.suppress(PermissionError):
            if entry.is_dir(follow_symlinks=False):
                if depth:
                    yield from _manifests(scan, Path(entry.path), depth - 1)
            elif entry.is_file():
                yield Path(entry.path)


def _model_blob(store: Path, manifest: Path) -> Path | None:
    """The GGUF file of a manifest; None if it names none, or a missing one."""
    try:
        layers = json.loads(read_small(manifest, _MANIFEST_LIMIT))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == _OLLAMA_MODEL]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    match = _OLLAMA_DIGEST.fullmatch(digests[0]) if digests and isinstance(digests[0], str) else None
    if match is None:
        return None
    blob = store / "blobs" / f"sha256-{match[1]}"
    return blob if os.path.isfile(blob) else None


def _ollama_name(manifest: Path) -> str:
    """A model's name as Ollama shows it: ``llama3.2:1b``, ``owner/model:tag``."""
    *above, model, tag = PurePosixPath(manifest).parts if len(manifest.parts) > 1 else ("", manifest.name)
    if above[:1] == [_OLLAMA_REGISTRY]:
        above = above[1:]
    if above == [_OLLAMA_OWNER]:
        above = []
    return "/".join([*above, f"{model}:{tag}"])


def typed_model(text: str, relative_to: Path) -> FoundModel | None:
    """The model that a typed path names: a directory with a ``config.json`` or a GGUF file; None for other texts."""
    whole = Path(os.path.normpath(relative_to.absolute() / user_path(text)))
    try:
        is_model = os.path.isfile(whole / "config.json") or (os.path.isfile(whole) and whole.suffix == ".gguf")
        if not text.strip() or not is_model:
            return None
    except ValueError:
        return None
    return FoundModel(whole.name, str(whole), whole, "directory", shown_path(whole.parent))


def fetchable(text: str) -> HubEntry | None:
    """The hub model that a typed text names."""
    entry = model_entry(text.strip().removeprefix("https://huggingface.co/").rstrip("/"))
    return entry if entry is not None and is_hub_id(entry.repository) else None

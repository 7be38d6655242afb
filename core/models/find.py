"""Base model lookup on this machine, the same for the worker, the commands and the app; never uses the network."""

from __future__ import annotations

import contextlib
import difflib
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core import paths
from core.errors import UserError
from core.hub_uri import DEFAULT_REVISION, HubEntry, is_hub_entry, is_hub_id, parse_entry
from core.models.description import read_record
from core.paths import user_path, working_directory
from core.small_files import read_small
from core.text import one_line

#: Model that needs no hub; the first run with it prepares it.
STARTER_NAME = "smollm2-135m-instruct"
#: Key in the record of a conversion: the GGUF file had exactly the weights of its architecture. Conversions by versions
#: that did not check this are made anew.
CHECKED = "checked"
#: Prefix of the directories of models in the Hugging Face cache.
_CACHED_PREFIX = "models--"
#: Most directories listed to find a name like a mistyped one.
_MOST_NAMES = 2000
#: Least similarity of a suggested name, and of a suggested hub id, as many ids are alike.
_CLOSE, _CLOSE_IDS = 0.6, 0.85


def find_model(name: str, relative_to: Path | None = None) -> Path | None:
    """The directory of a base model, if it is on this machine and ready.

    Args:
        name: A directory; a GGUF file, if it has been converted; the name of a prepared model; a hub id (``owner/name``
            or ``hf://owner/name@revision``), if that revision of the model has been fetched or is in the local Hugging
            Face cache.
        relative_to: Base of a relative path; the working directory by default.

    Returns:
        An absolute path; the content of the directory is not checked.
    """
    path = model_path(name, relative_to)
    # Not the methods of Path, which raise on impossible file names.
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        return find_converted(path)
    prepared = paths.models_dir() / name
    if Path(name).name == name and os.path.isdir(prepared):
        return prepared
    entry = model_entry(name)
    return None if entry is None else find_fetched_model(entry) or find_in_hub_cache(entry)


def model_path(name: str, relative_to: Path | None = None) -> Path:
    """A name as an absolute path."""
    return (relative_to or working_directory()).absolute() / user_path(name)


def model_entry(name: str) -> HubEntry | None:
    """The hub model named by ``owner/name`` or ``hf://owner/name@revision``; None for other names."""
    if is_hub_id(name):
        return HubEntry("model", name)
    if not is_hub_entry(name):
        return None
    try:
        entry = parse_entry(name)
    except UserError:
        return None
    return entry if entry.kind == "model" and not entry.path else None


def fetched_models(entry: HubEntry) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Directories of a hub model's fetched files, at any commit, each with its record."""
    models = paths.models_dir()
    for directory in (models / entry.directory_name, *sorted(models.glob(f"{glob.escape(entry.directory_name)}@*"))):
        record = read_record(directory)
        if record is not None and record.get("repository") == entry.repository:
            yield directory, record


def revisions_of(record: Mapping[str, Any]) -> list[str]:
    """Branches and tags that pointed to a fetched model's commit when they were last fetched."""
    found = record.get("revisions")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def find_fetched_model(entry: HubEntry) -> Path | None:
    """The directory of a model fetched from a hub, at the revision that the entry names."""
    plain = paths.models_dir() / entry.directory_name
    if not entry.revision and os.path.isdir(plain):
        return plain
    revision = entry.revision or DEFAULT_REVISION
    for directory, record in fetched_models(entry):
        commit = str(record.get("commit"))
        if revision in revisions_of(record) or (_is_hash(revision) and commit.startswith(revision)):
            return directory
    return None


def _is_hash(revision: str) -> bool:
    """True if a revision may be an abbreviated commit hash."""
    return re.fullmatch(r"[0-9a-f]{7,40}", revision) is not None


def is_model_here(name: str, relative_to: Path | None = None) -> bool:
    """True if a run would find the base model: a directory, a GGUF file, a prepared or fetched model, or the starter
    model, which the run prepares. The content is not checked.
    """
    return (
        name == STARTER_NAME
        or os.path.isfile(model_path(name, relative_to))
        or find_model(name, relative_to) is not None
    )


def missing_model(name: str, relative_to: Path | None = None) -> UserError:
    """The error for a name that :func:`find_model` does not find, with a hint."""
    shown, path = one_line(name, 200), model_path(name, relative_to)
    if os.path.isfile(path):
        return UserError(f"The model {shown} is not converted yet.", "The first run with it converts it.")
    if name == STARTER_NAME:
        return UserError(f"The starter model {shown} is not prepared yet.", "'localtune-tui demo' prepares it.")
    near = close_name(name)
    guess = f"Did you mean {one_line(near, 100)}? " if near is not None else ""
    if (entry := model_entry(name)) is not None:
        where = f"copy in {paths.models_dir()} or in the local Hugging Face cache"
        hint = f"{guess}'localtune-tui fetch {entry}' downloads it."
    else:
        # A plain name is rarely meant as a directory here.
        where = (
            f"file or directory {one_line(str(path), 200)}"
            if os.sep in name
            else f"prepared model of that name in {paths.models_dir()}, and no such file or directory"
        )
        hint = guess or f"Set model.base to a directory, a GGUF file or {STARTER_NAME}; "
        hint += "'localtune-tui fetch hf://OWNER/NAME' downloads a model from a hub."
    return UserError(f"The model {shown} is not on this machine: there is no {where}.", hint)


def locate_model(name: str, relative_to: Path | None = None) -> Path:
    """The path of a model on this machine.

    Args:
        name: A directory, a GGUF file, a prepared model's name, or a hub id that is in the local Hugging Face cache.
        relative_to: Base of a relative path; the working directory by default.

    Raises:
        UserError: If it is not on this machine.
    """
    if os.path.exists(path := model_path(name, relative_to)):
        return path
    if (found := find_model(name, relative_to)) is not None:
        return found
    raise UserError(
        f"The model {one_line(name, 200)} is not on this machine, so its memory cannot be planned.",
        f"{missing_model(name, relative_to).hint} For a plan, a directory with its config.json is enough.",
    )


def close_name(name: str) -> str | None:
    """The model on this machine that a mistyped name most likely means."""
    known = [STARTER_NAME, *(base for base, _ in prepared_models()), *cached_models()]
    return most_like(name, known)


def most_like(name: str, known: Iterable[str]) -> str | None:
    """The known model that a mistyped name most likely means. A hub id only matches ids with the same numbers, because
    other sizes and versions are other models, and a prepared model of its own name, without the owner.
    """
    is_id = is_hub_id(name)
    written, best, found = name.lower() if is_id else name.lower().rpartition("/")[2], 0.0, None
    for other in known:
        if is_id and other.lower() == written.rpartition("/")[2]:
            return other
        if is_id and (not is_hub_id(other) or _numbers(name) != _numbers(other)):
            continue
        for candidate in {other.lower()} if is_id else {other.lower(), other.lower().rpartition("/")[2]}:
            likeness = difflib.SequenceMatcher(None, written, candidate).ratio()
            begun = max(4, -(-len(written) // 2))
            # A matching prefix is as likely as a few wrong letters.
            if not is_id and len(written) >= begun and candidate.startswith(written[:begun]):
                likeness = max(likeness, _CLOSE)
            if likeness > best and likeness >= (_CLOSE_IDS if is_id else _CLOSE):
                best, found = likeness, other
    return found


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def prepared_models() -> Iterator[tuple[str, Path]]:
    """Prepared and fetched models: the name for ``model.base``, and the directory."""
    for directory in _directories(paths.models_dir()):
        record = read_record(directory) or {}
        repository = record.get("repository")
        if not isinstance(repository, str) or not is_hub_id(repository):
            yield directory.name, directory
        elif directory.name == HubEntry("model", repository).directory_name:
            yield repository, directory
        else:
            revision = next(iter(revisions_of(record)), None) or str(record.get("commit", ""))
            yield str(HubEntry("model", repository, revision)), directory


def cached_directory(entry: HubEntry) -> Path:
    """The directory of a model in the local Hugging Face cache, whether it is there or not."""
    return hub_cache_dir() / f"{_CACHED_PREFIX}{entry.directory_name}"


def cached_models() -> Iterator[str]:
    """Hub ids of the models in the local Hugging Face cache, whole or not."""
    for directory in _directories(hub_cache_dir(), _CACHED_PREFIX):
        if (name := cached_id(directory)) is not None:
            yield name


def cached_id(path: Path) -> str | None:
    """The hub id of a path in a Hugging Face cache; None for other paths."""
    part = next((part for part in path.parts if part.startswith(_CACHED_PREFIX)), "")
    name = part.removeprefix(_CACHED_PREFIX).replace("--", "/", 1)
    return name if is_hub_id(name) else None


def _directories(place: Path, prefix: str = "") -> list[Path]:
    """The directories in a directory in order, without hidden ones; none if it cannot be read."""
    found = []
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_NAMES:
                break
            if entry.name.startswith(prefix) and not entry.name.startswith(".") and entry.is_dir():
                found.append(Path(entry.path))
    return sorted(found)


def find_converted(gguf: Path) -> Path | None:
    """The directory that a GGUF file, in its present state, was converted to; None if it was not."""
    try:
        identity = gguf_identity(gguf)
    except OSError:
        return None
    for directory in sorted(paths.models_dir().glob(f"{glob.escape(converted_stem(gguf))}-*")):
        record = read_record(directory) or {}
        if record.get("identity") == identity and record.get(CHECKED):
            return directory
    return None


def gguf_identity(gguf: Path) -> dict[str, Any]:
    """Identity of a GGUF file, to detect that it has changed since it was converted.

    Raises:
        OSError: If the file is not accessible.
    """
    facts = gguf.stat()
    return {"path": str(gguf.absolute()), "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def converted_stem(gguf: Path) -> str:
    """Prefix of the directories that a GGUF file is converted to."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", gguf.stem).strip("-.")[:80] or "model"


def hub_cache_dir() -> Path:
    """The Hugging Face cache directory, from that library's environment variables."""
    if explicit := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return user_path(explicit)
    hub_home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return user_path(hub_home) / "hub"


def find_in_hub_cache(entry: HubEntry) -> Path | None:
    """The snapshot of a hub model in the local Hugging Face cache: of the revision that the entry names, else of its
    default branch. Never uses the network.
    """
    directory = cached_directory(entry)
    commits = [entry.revision] if _is_hash(entry.revision) else []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        reference = directory / "refs" / (entry.revision or DEFAULT_REVISION)
        commits.append(read_small(reference, 1 << 10).decode("ascii").strip())
    snapshots = [directory / "snapshots" / commit for commit in commits if re.fullmatch(r"\w+", commit)]
    return next((snapshot for snapshot in snapshots if os.path.isdir(snapshot)), None)

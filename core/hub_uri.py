"""Hub entries in a configuration: ``hf://datasets/owner/name@revision/path#split`` on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from core.errors import UserError
from core.paths import user_path
from core.text import one_line

Kind = Literal["dataset", "model"]

#: The form of an entry, for messages.
FORM = "hf://datasets/owner/name, perhaps with @revision, /path and #split behind it"
DEFAULT_REVISION = "main"

# Path() makes one slash of two, so an entry that has been a path is still recognized.
_PREFIX = re.compile(r"hf:/+", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./+-]{0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Revisions with a slash that the Hub makes itself; in others the slash is written %2F.
_SLASHED = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Bytes of a file name, as file systems limit it, and of a path, so that no home directory makes it too long.
_LONGEST_PART = 255
_LONGEST_NAME = 1024
# Limit of "owner/name", so that directory names made from it stay below that of a file system.
_LONGEST_REPOSITORY = 160


@dataclass(frozen=True)
class HubEntry:
    """A repository of the Hub, or a part of it.

    Args:
        kind: The kind of repository.
        repository: ``owner/name``.
        revision: A branch, a tag or a commit; empty for the default branch.
        path: A file in it, a directory or a pattern; empty for the whole repository.
        part: The name after ``#``: a split, a subset, or ``subset/split``.
    """

    kind: Kind
    repository: str
    revision: str = ""
    path: str = ""
    part: str = ""

    @property
    def commit(self) -> str:
        """The revision, if it is a full commit hash; else an empty string."""
        return self.revision if is_commit(self.revision) else ""

    @property
    def directory_name(self) -> str:
        """The name of its local directory."""
        return self.repository.replace("/", "--")

    def at(self, commit: str) -> HubEntry:
        """The same entry at one commit."""
        return replace(self, revision=commit)

    def __str__(self) -> str:
        """The entry as a configuration writes it."""
        text = f"hf://{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"
        if self.revision:
            slashed = _SLASHED.fullmatch(self.revision)
            text += "@" + (self.revision if slashed else quote(self.revision, safe="+"))
        return text + (f"/{self.path}" if self.path else "") + (f"#{self.part}" if self.part else "")


def is_hub_entry(text: str | Path) -> bool:
    """True if a text, or a path made from a text, denotes an entry of the Hub."""
    return _PREFIX.match(str(text)) is not None


def is_hub_id(name: str) -> bool:
    """True if a name has the form ``owner/name``."""
    owner, slash, rest = name.partition("/")
    return bool(slash and len(name) <= _LONGEST_REPOSITORY) and all(
        _NAME.fullmatch(part) and ".." not in part and "--" not in part for part in (owner, rest)
    )


def is_commit(revision: str) -> bool:
    """True if a revision is a full commit hash, which never changes its meaning."""
    return _COMMIT.fullmatch(revision) is not None


def parse_entry(text: str | Path) -> HubEntry:
    """Parse an entry.

    Args:
        text: ``hf://datasets/owner/name`` or, of a model, ``hf://owner/name``; ``@revision``, ``/path`` and, of a
            dataset, ``#part`` may follow.

    Raises:
        UserError: If it is not a valid entry.
    """
    written = _PREFIX.sub("", str(text), count=1)
    shown = one_line(f"hf://{written}", 200)
    kind: Kind = "model"
    for prefix, named in (("datasets/", "dataset"), ("models/", "model")):
        if written.startswith(prefix):
            kind, written = ("dataset" if named == "dataset" else "model"), written[len(prefix) :]
            break
    body, mark, part = written.partition("#")
    owner, _, rest = body.partition("/")
    name, at, behind = rest.partition("@") if "@" in rest.partition("/")[0] else (*rest.partition("/")[:1], "", "")
    path = behind if at else rest.partition("/")[2]
    revision = ""
    if at:
        special = _SLASHED.match(behind)
        revision = special.group() if special else unquote(behind.partition("/")[0])
        path = behind[len(special.group()) + 1 :] if special else behind.partition("/")[2]
    repository = f"{owner}/{name}"
    if not is_hub_id(repository):
        raise UserError(f"{shown} names no repository of the Hub.", f"Write {FORM}.")
    if at and not _REVISION.fullmatch(revision):
        raise UserError(f"{shown} has a revision that is none.", "Write a branch, a tag or a commit behind the @.")
    path = path.rstrip("/")
    if path and (reason := why_unsafe(path)):
        raise UserError(
            f"{shown} has a path that {reason.replace('its directory', 'the repository')}.", f"Write {FORM}."
        )
    if mark and (kind == "model" or not part or not is_safe_name(part) or part.count("/") > 1):
        raise UserError(f"{shown}: behind # stands a split, a subset or subset/split of a dataset.", f"Write {FORM}.")
    return HubEntry(kind, repository, revision, path, part)


def parse_dataset(text: str | Path) -> HubEntry:
    """Parse an entry that must be a dataset.

    Raises:
        UserError: If it is not a valid entry, or is a model.
    """
    entry = parse_entry(text)
    if entry.kind != "dataset":
        raise UserError(f"{entry} names a model, not a dataset.", f"Write hf://datasets/{entry.repository}.")
    return entry


def make_entry(
    repository: str, *, revision: object = None, path: object = None, subset: object = None, split: object = None
) -> HubEntry:
    """Make the entry of a dataset from the keys that other tools use; None or an empty value leaves a part out.

    Raises:
        UserError: If a part is not valid.
    """
    named = [("revision", revision), ("path", path), ("subset", subset), ("split", split)]
    if wrong := next((name for name, value in named if value and not isinstance(value, str)), None):
        raise UserError(f"The {wrong} of {one_line(repository, 120)} is not text.", "Fix it.")
    if isinstance(split, str) and re.search(r"[\[+%]", split):
        raise UserError(f"The split {one_line(split, 40)} is a part of one, or several.", "Name a whole split.")
    part = "/".join(value for value in (subset, split) if isinstance(value, str) and value)
    text = f"hf://datasets/{repository}"
    if isinstance(revision, str) and revision:
        text += f"@{revision if _SLASHED.fullmatch(revision) else quote(revision, safe='+')}"
    if isinstance(path, str) and path.strip("/"):
        text += f"/{path.strip('/')}"
    return parse_dataset(text + (f"#{part}" if part else ""))


def short_name(text: str) -> str:
    """A short name for an entry of a configuration: the file without its extension, or the repository's name."""
    if is_hub_entry(text):
        with contextlib.suppress(UserError):
            return parse_entry(text).repository.partition("/")[2]
    return Path(text).stem


def is_safe_name(name: str) -> bool:
    """True if a file name of a repository is a safe path inside a directory; see :func:`why_unsafe`."""
    return not why_unsafe(name)


def why_unsafe(name: str) -> str:
    """The reason why a file name of a repository must not be written to a disk, as the end of a sentence; else empty.

    A safe name is relative, with forward slashes and without ``..``, and valid in every file system that holds UTF-8.
    """
    if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
        return "leads out of its directory"
    if _CONTROL.search(name) is not None:
        return "has control characters"
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return "is not text"
    is_long = len(raw) > _LONGEST_NAME or any(len(part) > _LONGEST_PART for part in raw.split(b"/"))
    return "is too long" if is_long else ""


def absolute(text: str, base: Path) -> str:
    """An entry of a configuration made absolute: a path from its base; an entry of the Hub is left as it is."""
    if is_hub_entry(text):
        return _PREFIX.sub("hf://", text, count=1)
    return os.path.normpath(base / user_path(text))

"""Repository listings from a hub, strictly validated, as they are untrusted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from core.errors import UserError
from core.hub_uri import is_commit
from core.text import one_line

#: Largest listing of a repository, in bytes; each file takes some 300 of them.
ANSWER_LIMIT = 32 << 20
#: Most files of a repository.
MOST_FILES = 100_000
#: Largest file that a listing may have, in bytes, far beyond consumer disks.
MOST_BYTES = 1 << 50

#: Hint for an invalid answer.
NOT_A_HUB = "If HF_ENDPOINT is set, check that it is a hub; a network may also want a login in a browser first."

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Args:
        name: Its path in the repository, as the hub writes it; not yet a path on this machine.
        size: Size in bytes.
        sha256: Hash of its content, if the hub has it; else empty.
        blob: Its git blob hash; empty if the hub does not give it.
    """

    name: str
    size: int
    sha256: str
    blob: str


@dataclass(frozen=True)
class Listing:
    """Files of a repository at one commit; ``card`` is the metadata of its card, which is untrusted."""

    commit: str
    files: Mapping[str, RemoteFile]
    card: Mapping[str, Any]


def is_size(value: object) -> TypeGuard[int]:
    """True if a value is a valid file size in bytes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_BYTES


def read_listing(raw: bytes, host: str) -> Listing:
    """Parse a hub's listing of a repository.

    Args:
        raw: JSON, at most :data:`ANSWER_LIMIT` bytes.
        host: Name of the hub, for messages.

    Raises:
        UserError: If it is not a listing, or has an invalid commit, size or hash.
    """
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{host} does not answer as a hub does: what came is not JSON.", NOT_A_HUB) from error
    if not isinstance(answer, dict):
        raise UserError(f"{host} does not answer as a hub does: what came is no JSON object.", NOT_A_HUB)
    commit, siblings, card = answer.get("sha"), answer.get("siblings"), answer.get("cardData")
    if not isinstance(commit, str) or not is_commit(commit):
        said = answer.get("error")
        told = f" It says: {one_line(said, 200).rstrip('.')}." if isinstance(said, str) and said else ""
        raise UserError(f"{host} names no commit of this repository.{told}", NOT_A_HUB)
    if siblings is not None and not isinstance(siblings, list):
        raise UserError(f"{host} names the files of this repository in no list.", NOT_A_HUB)
    if siblings and len(siblings) > MOST_FILES:
        raise UserError(
            f"{host} names {len(siblings)} files in this repository, and {MOST_FILES} are looked through.",
            "Use another revision or another repository.",
        )
    files: dict[str, RemoteFile] = {}
    for item in siblings or ():
        file = _read_file(item, host)
        if file.name in files:
            raise UserError(f"{host} names {one_line(file.name, 120)} twice in this repository.", NOT_A_HUB)
        files[file.name] = file
    return Listing(commit, files, card if isinstance(card, dict) else {})


def _read_file(item: object, host: str) -> RemoteFile:
    name = item.get("rfilename") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(name, str):
        raise UserError(f"{host} names a file of this repository that has no name.", NOT_A_HUB)
    shown = one_line(name, 120)
    large = item.get("lfs")
    if large is not None and not isinstance(large, dict):
        raise UserError(f"{host} does not say how {shown} is kept.", NOT_A_HUB)
    size = item.get("size") if large is None else large.get("size")
    if not is_size(size):
        raise UserError(f"{host} does not say how large {shown} is.", NOT_A_HUB)
    sha256 = _hash(None if large is None else large.get("sha256"), _SHA256)
    blob = _hash(item.get("blobId"), _SHA1)
    if sha256 is None or blob is None:
        raise UserError(f"{host} gives a hash of {shown} that is none.", NOT_A_HUB)
    return RemoteFile(name, size, sha256, blob)


def _hash(value: object, form: re.Pattern[str]) -> str | None:
    """A hash; empty if missing, None if invalid."""
    if value is None or value == "":
        return ""
    return value if isinstance(value, str) and form.fullmatch(value) else None

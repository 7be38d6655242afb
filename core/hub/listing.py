"""Listings of a repository as a hub answers them, believed only as far as it has the form of such an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import UserError
from core.hub_uri import is_commit
from core.text import one_line

#: The largest answer about a repository, in bytes; a file takes some 300 of them.
ANSWER_LIMIT = 32 << 20
#: Files of a repository that are looked through.
MOST_FILES = 100_000
#: The largest file that a hub may name, in bytes; disks of consumers are far from it.
MOST_BYTES = 1 << 50

#: What to do about an answer that is none of a hub.
NOT_A_HUB = "If HF_ENDPOINT is set, check that it is a hub; a network may also want a login in a browser first."

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Args:
        name: Its path in the repository, as the hub writes it; not yet a path on this machine.
        size: Bytes.
        sha256: Of its content, where the hub knows it; empty otherwise.
        blob: The hash that git has for it; empty where the hub does not say.
    """

    name: str
    size: int
    sha256: str
    blob: str


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit; ``card`` is the data of its card, as anybody may have written it."""

    commit: str
    files: Mapping[str, RemoteFile]
    card: Mapping[str, Any]


def is_size(value: object) -> bool:
    """Whether a value is a number of bytes that a file can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_BYTES


def read_listing(raw: bytes, host: str) -> Listing:
    """The answer to the question what a repository holds.

    Args:
        raw: JSON, at most :data:`ANSWER_LIMIT` bytes.
        host: Who has answered, for messages.

    Raises:
        UserError: If it is none, or names a commit, a size or a hash that cannot be one.
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
    if not isinstance(size, int) or not is_size(size):
        raise UserError(f"{host} does not say how large {shown} is.", NOT_A_HUB)
    sha256 = _hash(None if large is None else large.get("sha256"), _SHA256)
    blob = _hash(item.get("blobId"), _SHA1)
    if sha256 is None or blob is None:
        raise UserError(f"{host} gives a hash of {shown} that is none.", NOT_A_HUB)
    return RemoteFile(name, size, sha256, blob)


def _hash(value: object, form: re.Pattern[str]) -> str | None:
    """A hash; empty where there is none, None where it cannot be one."""
    if value is None or value == "":
        return ""
    return value if isinstance(value, str) and form.fullmatch(value) else None

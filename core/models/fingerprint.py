"""Base model fingerprints: SHA-256 over all of a model's files, computed once.

The files are gigabytes, so hashes are cached in the home, ``cache/hashes.json``, by file identity (path, device, inode,
size, times of change); unchanged files are not read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.atomic import write_atomic
from core.errors import UserError
from core.models.description import TOKENIZERS, WEIGHTS_INDEX, unreadable
from core.models.tensors import weight_files
from core.paths import home, make_private_dir
from core.small_files import hash_file, read_json

#: Prefix of a fingerprint. Earlier versions hashed only the ends of the weight files and wrote no prefix.
PREFIX = "sha256:"
#: Cached hashes, the most recently used ones.
KEPT = 512
_CACHE_LIMIT = 4 << 20
#: Bytes at either end of a weight file that earlier versions hashed.
_ENDS = 1 << 20
# A file changed twice within a clock tick looks the same, so hashes of fresh files are not cached.
_SETTLED_SECONDS = 2.0
#: Files that decide how the weights are used, and the tokens. Templates show in the rows.
_DESCRIPTIONS = (
    *("config.json", "generation_config.json", WEIGHTS_INDEX, "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "merges.txt", *TOKENIZERS),
)
#: Seconds between two checks for a stop of the run.
_PATIENCE = 0.2

#: Identity of a file apart from its content: device, inode, size, mtime and ctime in nanoseconds. Tools that restore
#: mtime do not restore ctime.
_Identity = tuple[int, int, int, int, int]
#: Length of an identity and of the hash.
_ENTRY_LENGTH = 6


class BaseFingerprint:
    """Fingerprint of a base model, computed on a thread while the model is loaded.

    Args:
        directory: Directory of the model, in the transformers format; must not change until :meth:`settle` has
            returned.
        cached: Take the hashes of unchanged files from the cache; without it, all files are read, as a bit flip on the
            disk changes no timestamp.
    """

    def __init__(self, directory: Path, *, cached: bool = True) -> None:
        self._directory = directory
        self._cached = cached
        self._files: dict[Path, str] = {}
        self._identities: dict[Path, _Identity] = {}
        self._value: str | None = None
        self._failure: UserError | None = None
        self._thread = threading.Thread(target=self._compute, name="fingerprint", daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        try:
            files = _files(self._directory)
            self._identities = {path: _identity(path) for path in files}
            self._files = _hash_files(self._identities, _read_cache() if self._cached else {})
            self._value = PREFIX + _whole(self._identities, self._files)
        except OSError as error:
            self._failure = unreadable(Path(error.filename or self._directory), error)
        except UserError as error:
            self._failure = error

    @property
    def value(self) -> str:
        """``sha256:`` and 64 hexadecimal digits; blocks until computed.

        Raises:
            UserError: If a file cannot be read.
        """
        self._thread.join()
        if self._value is None:
            raise self._failure or UserError(f"The files in {self._directory} could not be hashed.", "Try again.")
        return self._value

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file by its name in the directory; blocks until computed.

        Raises:
            UserError: If one cannot be read.
        """
        _ = self.value
        return {os.path.relpath(path, self._directory): digest for path, digest in self._files.items()}

    def settle(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait for the fingerprint, and check that the files did not change while the model was loaded.

        Args:
            check: Called several times a second; may raise to abort.

        Raises:
            UserError: If a file cannot be read, or has changed since the beginning.
        """
        while self._thread.is_alive():
            check()
            self._thread.join(_PATIENCE)
        _ = self.value
        for path, identity in self._identities.items():
            if _identity_now(path) != identity:
                raise UserError(f"{path} was changed while it was read.", "Wait until it is whole, and start again.")

    def matches(self, recorded: str) -> bool:
        """True if a recorded fingerprint, from this version or an earlier one, matches these files.

        Raises:
            UserError: If a file cannot be read.
        """
        if recorded.startswith(PREFIX):
            return recorded == self.value
        try:
            return recorded == ends_fingerprint(self._directory)
        except OSError as error:
            raise unreadable(Path(error.filename or self._directory), error) from error

    def require(self, recorded: str, trained: str) -> None:
        """Refuse these files unless they are the base that was trained on.

        Args:
            recorded: The fingerprint of that base.
            trained: Name of the trained result, for the message.

        Raises:
            UserError: If they are not, or a file cannot be read.
        """
        if not self.matches(recorded):
            raise UserError(
                f"The base model {self._directory} has changed since {trained} was trained on it.",
                "Put the former one back: with another, the answers are not those of what was trained.",
            )


def ends_fingerprint(directory: Path) -> str:
    """SHA-256 over the names, sizes and both ends of the weight files, as earlier versions recorded it in checkpoints.

    Raises:
        OSError: If a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    return digest.hexdigest()


def _files(directory: Path) -> list[Path]:
    described = [path for name in dict.fromkeys(_DESCRIPTIONS) if (path := directory / name).is_file()]
    return [*weight_files(directory), *described]


def _identity(path: Path) -> _Identity:
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _identity_now(path: Path) -> _Identity | None:
    with contextlib.suppress(OSError):
        return _identity(path)
    return None


def _hash_files(identities: dict[Path, _Identity], known: dict[str, list[Any]]) -> dict[Path, str]:
    """SHA-256 of each file, with known hashes taken from the cache."""
    found: dict[str, list[Any]] = {}
    hashes: dict[Path, str] = {}
    for path, identity in identities.items():
        key = os.path.abspath(path)
        entry = known.get(key)
        if entry is None or entry[:-1] != list(identity):
            entry = [*identity, hash_file(path)]
        if time.time() - max(identity[3:]) / 1e9 >= _SETTLED_SECONDS and _identity_now(path) == identity:
            found[key] = entry
        hashes[path] = entry[-1]
    if any(known.get(key) != entry for key, entry in found.items()):
        kept = known or _read_cache()
        _write_cache({**{key: entry for key, entry in kept.items() if key not in found}, **found})
    return hashes


def _whole(identities: dict[Path, _Identity], hashes: dict[Path, str]) -> str:
    """SHA-256 over names, sizes and hashes."""
    whole = hashlib.sha256()
    for path, identity in identities.items():
        whole.update(f"{path.name}:{identity[2]}:{hashes[path]}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _cache_path() -> Path:
    return home() / "cache" / "hashes.json"


def _read_cache() -> dict[str, list[Any]]:
    """Cached hashes by path; empty if the file is missing, damaged or foreign."""
    try:
        content = read_json(_cache_path(), _CACHE_LIMIT)
    except (OSError, ValueError, UserError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {path: entry for path, entry in content.items() if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != _ENTRY_LENGTH:
        return False
    digest = entry[-1]
    return all(type(number) is int for number in entry[:-1]) and isinstance(digest, str) and len(digest) == 64


def _write_cache(entries: dict[str, list[Any]]) -> None:
    newest = dict(list(entries.items())[-KEPT:])
    # A full or read-only home only costs another computation.
    with contextlib.suppress(OSError, UserError):
        path = _cache_path()
        make_private_dir(path.parent)
        write_atomic(path, json.dumps(newest, indent=0) + "\n", durable=False)

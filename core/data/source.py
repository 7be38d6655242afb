"""Open a dataset file, or say in one sentence why it is none."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.errors import UserError
from core.text import one_line

Kind = Literal["jsonl", "json", "csv"]

#: What is read, for messages.
READ = "JSON Lines (.jsonl, .ndjson), JSON arrays (.json), CSV (.csv) and TSV (.tsv) are read"

_HEAD_BYTES = 64 << 10
_BOM = b"\xef\xbb\xbf"

_SUFFIX_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
# What people do have, and how it is turned into something that is read.
_FOREIGN_SUFFIXES = {
    **dict.fromkeys([".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z"], "an archive"),
    **dict.fromkeys([".parquet", ".arrow", ".feather"], "a columnar table"),
    **dict.fromkeys([".xls", ".xlsx", ".ods"], "a spreadsheet"),
    **dict.fromkeys([".txt", ".md", ".yaml", ".yml", ".toml", ".xml"], "a document, not a table of rows"),
}
_MAGIC = (
    (b"\x1f\x8b", "an archive"),
    (b"BZh", "an archive"),
    (b"\xfd7zXZ\x00", "an archive"),
    (b"\x28\xb5\x2f\xfd", "an archive"),
    (b"PK\x03\x04", "an archive or a spreadsheet"),
    (b"PAR1", "a columnar table"),
    (b"ARROW1", "a columnar table"),
)
_CONVERT = {
    "an archive": "Decompress it first",
    "a columnar table": "Convert it to JSON Lines first",
    "a spreadsheet": "Save it as CSV first",
    "an archive or a spreadsheet": "Decompress it, or save it as CSV, first",
}
_SPECIAL = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Bytes that text does not hold; a few may be noise in one row, many mean that this is no text.
_CONTROL = bytes(code for code in range(0x20) if code not in b"\t\n\r\x0b\x0c\x1b")
_CONTROL_SHARE = 0.1


class FileChangedError(UserError):
    """The file is not the one that was opened; opening it again reads the new one."""


@dataclass(frozen=True)
class Identity:
    """What tells whether a file is still the same."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """From a ``stat``."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Source:
    """An open, regular, readable file of a kind that is read. Whoever opened it closes ``descriptor``."""

    path: Path
    descriptor: int
    identity: Identity
    kind: Kind
    start: int
    """Byte offset of the first character, behind a byte order mark."""
    delimiter: str
    """Between the cells of a CSV; empty for JSON."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity.size


def open_source(path: Path) -> Source:
    """Open a dataset file; never blocks on a pipe, never touches a device.

    Raises:
        UserError: If it is missing, a directory or special, unreadable, empty, not text or of a kind that is not read.
    """
    shown = one_line(str(path))
    try:
        _refuse_special(path.stat(), shown)
        # Non-blocking, so that a pipe put there in between cannot hold us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _cannot_open(error, shown) from error
    try:
        status = os.fstat(descriptor)
        _refuse_special(status, shown)
        head = os.pread(descriptor, _HEAD_BYTES, 0)
        kind, start, delimiter = _recognize(path, head, shown)
    except OSError as error:
        os.close(descriptor)
        raise _cannot_open(error, shown) from error
    except UserError:
        os.close(descriptor)
        raise
    return Source(path, descriptor, Identity.of(status), kind, start, delimiter)


def _cannot_open(error: OSError | ValueError, shown: str) -> UserError:
    code = error.errno if isinstance(error, OSError) else errno.EINVAL
    if code in (errno.ENOENT, errno.ENOTDIR):
        return UserError(f"There is no file at {shown}.", "Check the path.")
    if code == errno.ELOOP:
        return UserError(f"{shown} is a symbolic link that leads back to itself.", "Name the file itself.")
    if code in (errno.EACCES, errno.EPERM):
        return UserError(f"{shown} may not be read by you.", "Mend its permissions, or copy it.")
    reason = os.strerror(code or errno.EIO)
    return UserError(f"{shown} cannot be read: {reason}.", "Check the path and the disk it is on.")


def _refuse_special(status: os.stat_result, shown: str) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    noun = next((noun for test, noun in _SPECIAL if test(status.st_mode)), "no regular file")
    hint = "Name the data file in it." if noun == "a directory" else "Copy its contents to a file and name that."
    raise UserError(f"{shown} is {noun}, not a data file.", hint)


def _recognize(path: Path, head: bytes, shown: str) -> tuple[Kind, int, str]:
    """Kind, first offset and CSV delimiter, from the name and the first bytes."""
    if not head:
        raise UserError(f"{shown} is empty.", "Give a file with at least one row.")
    suffix = path.suffix.lower()
    known = _SUFFIX_KINDS.get(suffix)
    noun = next((noun for magic, noun in _MAGIC if head.startswith(magic)), None)
    if noun or suffix in _FOREIGN_SUFFIXES:
        noun = noun or _FOREIGN_SUFFIXES[suffix]
        raise UserError(f"{shown} is {noun}.", f"{_CONVERT.get(noun, 'Convert it first')}: {READ}.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{shown} is UTF-16 text.", "Save it as UTF-8.")
    if len(head.translate(None, _CONTROL)) < len(head) * (1 - _CONTROL_SHARE):
        raise UserError(f"{shown} is not text.", f"Give a text file: {READ}.")
    start = len(_BOM) if head.startswith(_BOM) else 0
    if known == "csv":
        return "csv", start, _delimiter(suffix, head[start:])
    text = head[start:].lstrip()
    if known is None and text[:1] not in (b"{", b"["):
        raise UserError(f"{shown} is of a kind that is not read.", f"{READ}.")
    if text.partition(b"\n")[0].strip() == b"{":
        raise UserError(
            f"{shown} holds one JSON object spread over several lines.",
            "Write one object a line, or put the objects between [ and ] with commas.",
        )
    return ("json" if text[:1] == b"[" and _is_array(text) else "jsonl"), start, ""


def _is_array(text: bytes) -> bool:
    """Whether a leading bracket opens the array of rows, and not a row of JSON Lines that is an array itself."""
    line, _, rest = text.partition(b"\n")
    if not rest.strip():
        return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _delimiter(suffix: str, head: bytes) -> str:
    if suffix == ".tsv":
        return "\t"
    header = head.lstrip().partition(b"\n")[0]
    # Spreadsheets write semicolons where the comma is the decimal mark.
    return next((mark for mark in (",", ";", "\t") if mark.encode() in header), ",")

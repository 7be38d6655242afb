"""Dataset files: opened safely, with packing and layout of the rows recognized, or refused with a reason."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.data.files.encodings import encoding_name, find_encoding
from core.errors import UserError
from core.small_files import is_lfs_pointer, lfs_pointer
from core.text import one_line

Kind = Literal["jsonl", "json", "csv", "text"]

#: Supported files, for messages.
READ = (
    "JSON Lines (.jsonl), JSON (.json), CSV (.csv, .tsv), Parquet (.parquet), Arrow (.arrow), text (.txt), and .gz or "
    ".zst of these are read"
)
#: Bytes inspected at the beginning of a file.
HEAD_BYTES = 64 << 10

_BOM = b"\xef\xbb\xbf"
_SUFFIX_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
# Control bytes. A few may be noise in a row; many mean that the file is not text.
_CONTROL = bytes(code for code in range(0x20) if code not in b"\t\n\r\x0b\x0c\x1b")
_CONTROL_SHARE = 0.1
_SPACE = b" \t\r\n"
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR = re.compile(rb"[^,\[\]{}\"]+")
# Columns whose value is a list: an object with such a list is a row, not a container of rows.
_LISTS_OF_OBJECTS = {
    *("messages", "conversations", "conversation", "dialogue", "dialog", "turns"),
    *("tools", "functions", "prompt", "completion", "chosen", "rejected", "segments"),
}
_LISTS_OF_OTHERS = {"history", "input_ids", "labels", "attention_mask"}


@dataclass(frozen=True)
class Layout:
    """Layout of the rows of a text file.

    Args:
        kind: Kind of the file.
        start: Byte offset of the first character after any byte order mark; for an array inside an object, of its
            bracket.
        delimiter: Delimiter of a CSV; empty for other kinds.
        nested: True if the array is a value of an object, which may go on after it.
        line: Line of ``start``, from 1.
    """

    kind: Kind
    start: int = 0
    delimiter: str = ""
    nested: bool = False
    line: int = 1


def recognize(suffix: str, head: bytes, shown: str) -> Layout:
    """Recognize the layout of a file that begins with ``head`` and whose extension is ``suffix``.

    Raises:
        UserError: If it is not text, or not of a supported kind.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{shown} is UTF-16 text inside.", "Save it as UTF-8.")
    if len(head.translate(None, _CONTROL)) < len(head) * (1 - _CONTROL_SHARE):
        raise UserError(f"{shown} is not text.", f"Give a text file: {READ}.")
    start = len(_BOM) if head.startswith(_BOM) else 0
    known = _SUFFIX_KINDS.get(suffix)
    if known == "csv":
        return Layout("csv", start, _delimiter(suffix, head[start:]))
    if known == "text":
        return Layout("text", start)
    text = head[start:].lstrip()
    if known is None and text[:1] not in (b"{", b"["):
        raise UserError(f"{shown} is of a kind that is not read.", f"{READ}.")
    if text[:1] == b"{" and suffix not in (".jsonl", ".ndjson"):
        inner = _first_array(head, start)
        if inner is not None and head[inner + 1 :].lstrip(_SPACE)[:1] == b"{":
            return Layout("json", inner, nested=True, line=head.count(b"\n", 0, inner) + 1)
    if text.partition(b"\n")[0].strip() == b"{":
        raise UserError(
            f"{shown} holds one JSON object spread over several lines.",
            "Write one object a line, or put the objects between [ and ] with commas.",
        )
    return Layout("json" if text[:1] == b"[" and _is_array(text) else "jsonl", start)


def is_column_arrays(head: bytes) -> bool:
    """True if a JSON file is an object of arrays, one per column: ``{"question": [...], "answer": [...]}``."""
    start = len(_BOM) if head.startswith(_BOM) else 0
    inner = _first_array(head, start)
    if inner is None or b"," in _STRING.sub(b"", head[start:inner]):
        return False
    first = head[inner + 1 :].lstrip(_SPACE)[:1]
    return first not in (b"", b"{", b"]")


def _first_array(head: bytes, start: int) -> int | None:
    """Offset of the first array among the values of the file's object; None if the file holds rows instead.

    Objects on lines of their own are rows, and so is an object whose lists are columns of a row.
    """
    position = start + len(head[start:]) - len(head[start:].lstrip(_SPACE))
    if head[position : position + 1] != b"{" or _is_object_a_line(head[position:]):
        return None
    position += 1
    while (key := _STRING.match(head, position := _skip(head, position, b","))) is not None:
        position = _skip(head, key.end(), b":")
        if head[position : position + 1] == b"[":
            name = key.group()[1:-1].decode("utf-8", "replace")
            own = _LISTS_OF_OBJECTS if head[position + 1 :].lstrip(_SPACE)[:1] == b"{" else _LISTS_OF_OTHERS
            return None if name in own else position
        value = _STRING.match(head, position) or _SCALAR.match(head, position)
        if value is None:
            return None
        position = value.end()
    return None


def _skip(head: bytes, position: int, mark: bytes) -> int:
    """Position after spaces and at most one ``mark``."""
    size = len(head)
    while position < size and head[position] in _SPACE + mark:
        position += 1
    return position


def _is_object_a_line(text: bytes) -> bool:
    """True if the first line is a whole object and another object follows."""
    line, _, rest = text.partition(b"\n")
    if rest.lstrip(_SPACE)[:1] != b"{":
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        # Damaged, or longer than the inspected head: the object after it decides.
        return True


def _is_array(text: bytes) -> bool:
    """True if a leading bracket opens an array of rows, rather than a line of JSON Lines that is itself an array."""
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


#: Columnar contents, which have no lines; ``columns`` is a JSON object of arrays.
_TABLES = frozenset({"parquet", "arrow", "columns"})
_COMPRESSED = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_COLUMNAR = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
_PACKED_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"\xff\xff\xff\xff", "arrow"),
)
# Files that users have but that cannot be read, and the way to convert each.
_FOREIGN_SUFFIXES = {
    **dict.fromkeys([".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z"], "an archive"),
    **dict.fromkeys([".xls", ".xlsx", ".ods"], "a spreadsheet"),
    **dict.fromkeys([".md", ".yaml", ".yml", ".toml", ".xml", ".pdf", ".html"], "a document, not a table of rows"),
}
_FOREIGN_MAGIC = (
    (b"BZh", "an archive"),
    (b"\xfd7zXZ\x00", "an archive"),
    (b"PK\x03\x04", "an archive or a spreadsheet"),
)
_CONVERT = {
    "an archive": "Decompress it first",
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


class FileChangedError(UserError):
    """The file was replaced or changed after it was opened; opening it again reads the new content."""


@dataclass(frozen=True)
class Source:
    """An open, regular file of a supported kind. The caller of :func:`open_source` closes ``descriptor``.

    Args:
        path: Path of the file.
        descriptor: File descriptor, open for reading.
        status: Its status when opened.
        packing: Packing to undo before rows can be read: empty, ``gzip``, ``zstd``, ``parquet``, ``arrow``,
            ``columns``, an encoding other than UTF-8, or a compression or encoding and a content such as
            ``gzip+parquet``. The layout of ``gzip+json`` is known only after decompression.
        suffix: Extension of the name, in lower case; for a compressed file, the inner extension.
        layout: Layout of the rows; None if the file is packed.
        note: A sentence on its encoding; empty for UTF-8.
    """

    path: Path
    descriptor: int
    status: os.stat_result
    packing: str
    suffix: str
    layout: Layout | None
    note: str = ""

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.status.st_size

    @property
    def is_table(self) -> bool:
        """True for a columnar file, which has no lines."""
        return self.packing.rpartition("+")[2] in _TABLES

    @property
    def shown(self) -> str:
        """The path, safe to print."""
        return one_line(str(self.path))

    def refuse_changed(self) -> None:
        """Check that the file has not changed since it was opened.

        Raises:
            FileChangedError: If it is gone, replaced or changed.
        """
        try:
            now = self.path.stat()
        except OSError:
            raise self.changed("is gone") from None
        if not os.path.samestat(now, self.status):
            raise self.changed("has been replaced")
        if now.st_size < self.size:
            raise self.changed("has become shorter")
        if (now.st_size, now.st_mtime_ns) != (self.size, self.status.st_mtime_ns):
            raise self.changed("has changed")

    def changed(self, change: str) -> FileChangedError:
        """The error for a file that was replaced or changed."""
        return FileChangedError(f"{self.shown} {change} since it was opened.", "Open it again.")


def open_source(path: Path) -> Source:
    """Open a dataset file without blocking on pipes or touching devices.

    Raises:
        UserError: If it is missing, a directory or special file, unreadable, empty, not text or of an unsupported kind.
    """
    shown = one_line(str(path))
    try:
        _refuse_special(path.stat(), shown)
        # Non-blocking, in case a pipe has taken its place since.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise cannot_open(error, shown) from error
    try:
        status = os.fstat(descriptor)
        _refuse_special(status, shown)
        head = os.pread(descriptor, HEAD_BYTES, 0)
        if is_lfs_pointer(head):
            raise lfs_pointer(path)
        packing, suffix = _packing(path, head, shown)
        note = ""
        if packing in ("", "columns") and (encoding := find_encoding(descriptor, status.st_size)):
            packing = f"{encoding}+json" if suffix == ".json" else encoding
            note = f"It is read as {encoding_name(encoding)}."
        layout = None if packing else recognize(suffix, head, shown)
    except OSError as error:
        os.close(descriptor)
        raise cannot_open(error, shown) from error
    except UserError:
        os.close(descriptor)
        raise
    return Source(path, descriptor, status, packing, suffix, layout, note)


def cannot_open(error: OSError | ValueError, shown: str) -> UserError:
    """The error for a path that cannot be opened."""
    code = error.errno if isinstance(error, OSError) else errno.EINVAL
    if code in (errno.ENOENT, errno.ENOTDIR):
        return UserError(f"There is no file at {shown}.", "Check the path.")
    if code == errno.ELOOP:
        return UserError(f"{shown} is a symbolic link that leads back to itself.", "Name the file itself.")
    if code in (errno.EACCES, errno.EPERM):
        return UserError(f"{shown} may not be read by you.", "Fix its permissions, or copy it.")
    reason = os.strerror(code or errno.EIO)
    return UserError(f"{shown} cannot be read: {reason}.", "Check the path and the disk it is on.")


def _refuse_special(status: os.stat_result, shown: str) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    noun = next((noun for test, noun in _SPECIAL if test(status.st_mode)), "no regular file")
    hint = "Name the data file in it." if noun == "a directory" else "Copy its contents to a file and name that."
    raise UserError(f"{shown} is {noun}, not a data file.", hint)


def _packing(path: Path, head: bytes, shown: str) -> tuple[str, str]:
    """Packing of a file, and the extension of its content."""
    if not head:
        raise UserError(f"{shown} is empty.", "Give a file with at least one row.")
    suffix = path.suffix.lower()
    packing = next((packing for magic, packing in _PACKED_MAGIC if head.startswith(magic)), None)
    if packing in ("gzip", "zstd"):
        inner = Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix
        if inner == ".tar":
            raise UserError(f"{shown} is a compressed {inner[1:]} file.", f"Decompress it first: {READ}.")
        if inner in _COLUMNAR:
            return f"{packing}+{_COLUMNAR[inner]}", ".jsonl"
        return f"{packing}+json" if inner == ".json" else packing, inner
    if packing is not None:
        return packing, ".jsonl"
    expected = _COMPRESSED.get(suffix) or _COLUMNAR.get(suffix)
    if expected:
        raise UserError(
            f"{shown} is not a valid {expected} file, despite its name.", "It is damaged, or has the wrong suffix."
        )
    noun = next((noun for magic, noun in _FOREIGN_MAGIC if head.startswith(magic)), _FOREIGN_SUFFIXES.get(suffix))
    if noun:
        raise UserError(f"{shown} is {noun}.", f"{_CONVERT.get(noun, 'Convert it first')}: {READ}.")
    return ("columns" if suffix == ".json" and is_column_arrays(head) else ""), suffix

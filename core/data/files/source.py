"""Dataset files: opened safely, with packing and layout recognized, or refused with a reason."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from core.data.files.layout import HEAD_BYTES, READ, Layout, is_column_arrays, recognize
from core.errors import UserError
from core.text import one_line

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
            ``columns``, or a compression and a content such as ``gzip+parquet``. The layout of ``gzip+json`` is known
            only after decompression.
        suffix: Extension of the name, in lower case; for a compressed file, the inner extension.
        layout: Layout of the rows; None if the file is packed.
    """

    path: Path
    descriptor: int
    status: os.stat_result
    packing: str
    suffix: str
    layout: Layout | None

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
        packing, suffix = _packing(path, head, shown)
        layout = None if packing else recognize(suffix, head, shown)
    except OSError as error:
        os.close(descriptor)
        raise cannot_open(error, shown) from error
    except UserError:
        os.close(descriptor)
        raise
    return Source(path, descriptor, status, packing, suffix, layout)


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
            f"{shown} is no {expected} file, whatever its name says.", "It is damaged, or has the wrong ending."
        )
    noun = next((noun for magic, noun in _FOREIGN_MAGIC if head.startswith(magic)), _FOREIGN_SUFFIXES.get(suffix))
    if noun:
        raise UserError(f"{shown} is {noun}.", f"{_CONVERT.get(noun, 'Convert it first')}: {READ}.")
    return ("columns" if suffix == ".json" and is_column_arrays(head) else ""), suffix

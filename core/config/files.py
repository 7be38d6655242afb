"""A text file that people edit too: its line ends and permissions are kept, and changes by others are noticed."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from core.atomic import write_atomic
from core.small_files import read_small

#: Most bytes that are read; a configuration has a few thousand.
LIMIT = 1 << 20

_BOM = "\ufeff"
_NEW_FILE = 0o644


@dataclass(frozen=True)
class FileText:
    """The text of a file with line feeds only, and its line ends, byte order mark and digest.

    Args:
        text: The text.
        crlf: Whether its lines end as on Windows.
        bom: Whether it begins with a byte order mark.
        digest: SHA-256 of its bytes, in hexadecimal.
    """

    text: str
    crlf: bool = False
    bom: bool = False
    digest: str = ""

    @classmethod
    def read(cls, path: Path) -> FileText:
        """Read a UTF-8 file.

        Raises:
            OSError: If it cannot be read, is no regular file, or is too large for a configuration.
            UnicodeDecodeError: If it is not UTF-8.
        """
        raw = read_small(path, LIMIT)
        text = raw.decode("utf-8")
        bom = text.startswith(_BOM)
        text = text.removeprefix(_BOM)
        pairs = text.count("\r\n")
        return cls(text.replace("\r\n", "\n"), pairs > text.count("\n") / 2, bom, _digest(raw))

    def write(self, path: Path, text: str) -> FileText:
        """Write another text with this file's line ends and byte order mark, atomically.

        Where the path is a link, its target is replaced. Permissions of an existing file are kept.

        Returns:
            The file as it is now.

        Raises:
            OSError: If it cannot be written; the old file is untouched.
        """
        target = Path(os.path.realpath(path)) if os.path.islink(path) else path
        mode = stat.S_IMODE(target.stat().st_mode) if os.path.isfile(target) else _NEW_FILE
        raw = ((_BOM if self.bom else "") + (text.replace("\n", "\r\n") if self.crlf else text)).encode("utf-8")
        write_atomic(target, raw, mode=mode)
        return FileText(text, self.crlf, self.bom, _digest(raw))

    def is_still(self, path: Path) -> bool:
        """True if a file still has these bytes, or is gone, so that overwriting it loses nothing."""
        try:
            return _digest(read_small(path, LIMIT)) == self.digest
        except FileNotFoundError:
            return True
        except OSError:
            return False


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()

"""Files of configurations: text that people edit too, whose line ends and permissions are kept and whose changes by
others are noticed; and the list of recently opened files."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.paths import working_directory
from core.small_files import read_json, read_small

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
            OSError: If it cannot be read, is not a regular file, or is too large for a configuration.
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


#: The most paths that are remembered.
KEPT = 30
_LARGEST_FILE = 1 << 20


def recent_path() -> Path:
    """The file with the list."""
    return paths.home() / "recent.json"


def recent_configs() -> list[Path]:
    """The recently opened configurations, the last one first; deleted files are left out."""
    try:
        names = read_json(recent_path(), _LARGEST_FILE)
    except (OSError, ValueError):
        return []
    texts = [name for name in names if isinstance(name, str) and "\0" not in name] if isinstance(names, list) else []
    found = [Path(text) for text in dict.fromkeys(texts)][:KEPT]
    # Not the method of Path, which raises on names that no file can have.
    return [path for path in found if path.is_absolute() and os.path.isfile(path)]


def remember_config(path: Path) -> None:
    """Put a configuration first in the list; if the list cannot be written, it stays as it is."""
    whole = working_directory() / path
    names = [whole, *(other for other in recent_configs() if other != whole)][:KEPT]
    text = json.dumps([str(name) for name in names], indent=0) + "\n"
    # A file name that is not valid text cannot be stored.
    with suppress(OSError, UserError, UnicodeError):
        paths.make_private_dir(paths.home())
        write_atomic(recent_path(), text, durable=False)

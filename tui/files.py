"""Files of the user: paths in a configuration, texts that the app saves, and texts edited in the user's own editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from core.hub_uri import absolute, is_hub_entry
from core.paths import working_directory
from core.text import one_line

if TYPE_CHECKING:
    from core.config.document import ConfigDocument


def data_paths(document: ConfigDocument, use: str) -> list[Path]:
    """The files of ``data.train`` or ``data.eval``, absolute and with links resolved.

    Args:
        document: The configuration; relative paths are relative to its file, else to the working directory.
        use: ``train`` or ``eval``.
    """
    value = document.get(f"data.{use}")
    base = document.path.parent if document.path is not None else working_directory()
    texts = value if isinstance(value, list) else [value]
    found = [entry_path(text, base) for text in texts if isinstance(text, str) and text.strip()]
    return [path if is_hub_entry(path) else Path(follow_links(path)) for path in found]


def follow_links(path: Path | str) -> str:
    """A path with its links resolved; a path that cannot be resolved, as a link to itself, stays as it is.

    An entry of a hub has none.
    """
    if is_hub_entry(path):
        return absolute(str(path), Path())
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL, which TOML can spell: there is no such file, and opening it reports that
        return str(path)


def is_among(entries: Iterable[Path | str], path: Path) -> bool:
    """True if an entry is a path, or the directory that it is in; links are followed."""
    wanted = follow_links(path)
    for entry in map(follow_links, entries):
        if wanted == entry:
            return True
        directory = entry if os.path.isdir(entry) else entry.rpartition("#")[0]
        if directory and wanted.startswith(directory + os.sep):
            return True
    return False


def entry_path(text: str, base: Path) -> Path:
    """A data path as typed or written, made absolute; an entry of a hub stays one, whatever the base."""
    return Path(absolute(text, base))


def entry_text(path: Path) -> str:
    """The inverse of :func:`entry_path`: a path made absolute, or an entry of a hub with both of its slashes."""
    return absolute(str(path), working_directory())


def path_text(document: ConfigDocument, path: Path) -> str:
    """A path as the configuration should write it: relative to its file where it is in or below the file's directory.

    Then both can be moved together.
    """
    if is_hub_entry(path):
        return entry_text(path)
    whole = working_directory() / path
    if document.path is not None:
        base = (working_directory() / document.path).parent
        if whole.is_relative_to(base):
            return str(whole.relative_to(base))
    return str(whole)


def save_text(kind: str, suffix: str, text: str) -> Path:
    """Save a text in a new file of the user alone, in the working directory, or at home where that cannot be written.

    Args:
        kind: The beginning of the file's name, before the time.
        suffix: The end of its name, with a dot.
        text: The content.

    Returns:
        The file.

    Raises:
        UserError: If neither directory can be written to.
    """
    name = f"{kind}-{datetime.now().strftime('%Y%m%d-%H%M%S-%f')[:-4]}{suffix}"
    reason, path = "", Path.home() / name
    for directory in _directories():
        path = directory / name
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        return path
    raise UserError(f"{path.parent} cannot be written to: {reason}.")


def _directories() -> list[Path]:
    try:
        return [working_directory(), Path.home()]
    except OSError:  # the working directory has been deleted
        return [Path.home()]


def find_editor() -> list[str]:
    """The editor as a command line: ``$VISUAL``, ``$EDITOR``, else the first of nano, vim and vi that is installed.

    Raises:
        UserError: If there is none.
    """
    for name in ("VISUAL", "EDITOR"):
        if command := os.environ.get(name, "").strip():
            try:
                words = shlex.split(command)
            except ValueError as error:
                raise UserError(f"${name} cannot be read as a command: {one_line(command, 80)}.", "Fix it.") from error
            if words:
                return words
    found = next((path for path in map(shutil.which, ("nano", "vim", "vi")) if path), None)
    if found is None:
        raise UserError("There is no editor.", "Set EDITOR to the one you use.")
    return [found]


def edit_text(text: str, name: str) -> str | None:
    """Edit a text in the user's editor; blocks, and the terminal must be free.

    Args:
        text: The text that the editor opens.
        name: File name of the private copy it edits, for its title and syntax.

    Returns:
        The text as it was saved; None when the editor reported failure, which is how editors say "discard".

    Raises:
        UserError: If there is no editor, it cannot be started, or the file that it leaves cannot be read.
    """
    command = find_editor()
    with tempfile.TemporaryDirectory(prefix="localtune-") as directory:
        path = Path(directory) / (Path(name).name or "config.toml")
        try:
            path.write_text(text, encoding="utf-8")
            code = subprocess.run([*command, str(path)], check=False).returncode
            return path.read_text(encoding="utf-8-sig") if code == 0 else None
        except UnicodeDecodeError as error:
            raise UserError("What the editor saved is not UTF-8 text.", "Save it as UTF-8.") from error
        except OSError as error:
            shown = one_line(command[0], 80)
            raise UserError(
                f"The editor {shown} did not work: {error.strerror}.", "Set EDITOR to another one."
            ) from error

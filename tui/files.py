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
    """The files of ``data.train`` or ``data.eval``: absolute paths with links resolved.

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
    """A path with its links resolved; unchanged if they cannot be resolved, as for a link to itself.

    Hub entries have no links.
    """
    if is_hub_entry(path):
        return absolute(str(path), Path())
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL character, which TOML allows; opening the file reports the error
        return str(path)


def is_among(entries: Iterable[Path | str], path: Path) -> bool:
    """True if an entry is the path or a directory above it, with links resolved."""
    wanted = follow_links(path)
    for entry in map(follow_links, entries):
        if wanted == entry:
            return True
        directory = entry if os.path.isdir(entry) else entry.rpartition("#")[0]
        if directory and wanted.startswith(directory + os.sep):
            return True
    return False


def entry_path(text: str, base: Path) -> Path:
    """A typed or configured data path, made absolute; a hub entry is returned as one."""
    return Path(absolute(text, base))


def entry_text(path: Path) -> str:
    """Inverse of :func:`entry_path`: the absolute path, or the hub entry with both of its slashes."""
    return absolute(str(path), working_directory())


def path_text(document: ConfigDocument, path: Path) -> str:
    """A path as written in the configuration: relative to its file if it is in or below the file's directory.

    Both can be moved together then.
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
    """Save a text in a new file with mode 0600, in the working directory, or in the home directory if that fails.

    Args:
        kind: The start of the file name, before the time.
        suffix: The suffix of the file name, with its dot.
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
    """The editor's command line: ``$VISUAL``, ``$EDITOR``, else the first installed one of nano, vim and vi.

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
    """Edit a text in the user's editor; blocks, and needs the terminal.

    Args:
        text: The text to edit.
        name: The file name of the private copy, for the editor's title and syntax.

    Returns:
        The saved text; None if the editor exits with an error, which is how editors discard.

    Raises:
        UserError: If there is no editor, it cannot be started, or its file cannot be read.
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

"""The user's own editor, for editing a text."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from core.errors import UserError
from core.text import one_line


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

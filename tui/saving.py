"""Files that the app saves for the user: pictures and conversations, in the working directory."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from core.errors import UserError
from core.paths import working_directory


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

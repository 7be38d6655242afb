"""Safe paths for names of a hub: below the directory they belong into, and never by way of a link."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import UserError
from core.hub_uri import is_safe_name
from core.text import one_line


def safe_path(root: Path, *names: str) -> Path:
    """Where something with these names lies below a directory, whether or not it is there.

    Only the directory itself may be a link: it is the user's to choose the disk that it is on. What a link below it led
    to would be written or read in place of what the names say.

    Args:
        root: The directory.
        names: What is below it, each name in the one before; each may have slashes.

    Raises:
        UserError: If a name would lead out of the directory, or there is a link on the way.
    """
    path = root.joinpath(*names)
    if not all(map(is_safe_name, names)):
        raise UserError(f"{one_line(str(path), 300)} is not written, as its name is unsafe.", "Use another repository.")
    place = str(root)
    for part in "/".join(names).split("/"):
        place = os.path.join(place, part)
        if os.path.islink(place):
            raise UserError(
                f"{one_line(place, 300)} is a link, which nothing is written or read through.",
                f"Remove it; only {one_line(str(root), 300)} itself may be one.",
            )
    return path

"""Safe paths for names from a hub: always below their directory, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import UserError
from core.hub_uri import is_safe_name
from core.text import one_line


def safe_path(root: Path, *names: str) -> Path:
    """Path of a file with these names below a directory, whether or not it exists.

    Only the directory itself may be a link: users choose its disk. A link below it could redirect reads and writes to
    any file.

    Args:
        root: The directory.
        names: Path components below it; each may contain slashes.

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

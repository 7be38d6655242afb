"""Files named by dataset registries: outside of the registry's directory they are reported or refused."""

from __future__ import annotations

import os
from pathlib import Path

from core import paths
from core.errors import UserError
from core.models.find import hub_cache_dir
from core.text import one_line


def note_outside(registry: Path, named: Path, where: str) -> str:
    """Remark on the location of a file that a registry names; empty if it is in the registry's directory.

    The owner of a registry may name any file; the remark is shown with the rows, as a user who got the registry from
    somebody else may not expect it. A registry that was downloaded is not trusted: it may name only files of the same
    download. Links are resolved.

    Args:
        registry: Path of the registry, as given.
        named: A file or directory that an entry of it names.
        where: The entry, for messages.

    Raises:
        UserError: If the registry was downloaded, and the file is not part of that download.
    """
    try:
        target = os.path.realpath(named)
    except ValueError as error:  # a NUL, or invalid Unicode
        raise UserError(f"{where} names {one_line(str(named), 200)}, which no file is called.", "Fix it.") from error
    if (download := _download_of(registry)) is not None:
        if _is_below(target, download):
            return ""
        raise UserError(
            f"{where} names {one_line(target, 200)}, which did not come with the download that the registry is from.",
            "Copy the registry into a directory of yours if that file is meant.",
        )
    if _is_below(target, os.path.realpath(registry.parent)):
        return ""
    return f"{one_line(registry.name, 60)} names a file outside of its directory: {one_line(target, 200)}."


def _download_of(registry: Path) -> str | None:
    """Directory of the repository that a registry was downloaded with; None for a registry of the user's own."""
    for downloads in (paths.datasets_dir(), paths.models_dir(), hub_cache_dir()):
        root = os.path.realpath(downloads)
        for place in (os.path.realpath(registry), os.path.realpath(registry.parent)):
            if _is_below(place, root) and place != root:
                return os.path.join(root, Path(place).relative_to(root).parts[0])
    return None


def _is_below(path: str, directory: str) -> bool:
    return Path(path).is_relative_to(directory)

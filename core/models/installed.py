"""Version and known architectures of the installed transformers, without importing it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from core.errors import UserError
from core.models.text_part import text_model_type
from core.text import one_line

#: Files with the table of configuration classes by ``model_type``, and an entry of it in either form.
_TABLES = ("auto_mappings.py", "configuration_auto.py")
_ENTRY = re.compile(r'"([\w.-]+)"\s*[:,]\s*"(?!AutoConfig")\w+Config"')
#: Longest version that is parsed, in characters.
_LONGEST_VERSION = 40


def transformers_version() -> str:
    """Version of the installed transformers; empty if it is not installed."""
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def known_model_types() -> frozenset[str]:
    """Every ``model_type`` that the installed transformers knows; empty if its table is not found."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return frozenset()
    directory = Path(found.origin).parent / "models" / "auto"
    try:
        source = "".join((directory / name).read_text(encoding="utf-8") for name in _TABLES)
    except OSError:
        return frozenset()
    return frozenset(_ENTRY.findall(source))


def newer_version(config: Mapping[str, Any]) -> str | None:
    """The version of transformers that a ``config.json`` was saved with, if it is newer than the installed one."""
    said, installed = config.get("transformers_version"), transformers_version()
    if not isinstance(said, str) or len(said) > _LONGEST_VERSION or not installed:
        return None
    try:
        wanted = Version(said)
        # A development version's files are readable by the release with the same base version.
        return wanted.base_version if Version(wanted.base_version) > Version(installed) else None
    except InvalidVersion:
        return None


def check_known(config: Mapping[str, Any], directory: Path) -> None:
    """Check that the installed transformers knows the architecture of a ``config.json``, and that of its text part.

    Args:
        config: Its content, with a ``model_type``.
        directory: Name of the model in messages.

    Raises:
        UserError: If not; it says which version does, if the configuration says so.
    """
    known = known_model_types()
    for family in (config.get("model_type"), text_model_type(config)):
        if known and isinstance(family, str) and family not in known:
            raise unknown_architecture(config, directory, family)


def unknown_architecture(config: Mapping[str, Any], directory: Path, family: str) -> UserError:
    """The error for an architecture that the installed transformers does not know."""
    what = (
        f"{directory} is of the architecture {one_line(family, 60)}, which transformers {transformers_version()} does "
        "not know"
    )
    if (newer := newer_version(config)) is not None:
        return UserError(
            f"{what}; it was saved with transformers {newer}, which does.",
            f"Upgrade transformers: pip install --upgrade 'transformers>={newer}'.",
        )
    return UserError(f"{what}.", "Upgrade transformers if the model is newer than it, or choose another model.")

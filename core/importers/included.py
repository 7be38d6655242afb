"""Included files: settings in a file that a configuration names, such as DeepSpeed's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from core.errors import UserError
from core.importers.redact import cleaned, shown
from core.importers.translation import Translation
from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.small_files import read_small
from core.text import one_line
from core.yaml.sandboxed import read_yaml

#: Largest file read, in bytes, as for the configurations themselves.
LIMIT = 128 << 10
#: Most settings of a file, and how deep they lie.
MOST_SETTINGS, DEEPEST = 400, 6


def included(work: Translation, key: str) -> Mapping[str, Any] | None:
    """Settings that a key has, or that the file has which it names; None where that file is not here.

    A file is looked for where the paths of the configuration start, and beside the configuration.

    Args:
        work: The translation.
        key: The key.

    Raises:
        UserError: If it is neither a table nor the name of a file, or the file cannot be read.
    """
    value = work.values[key]
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str):
        work.refuse(key, f"must be a file or a table of keys, not {shown(key, value)}")
    found = _find(work, value)
    return None if found is None else read_settings(found)


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a JSON or YAML file, parsed in the sandbox.

    Raises:
        UserError: If it cannot be read, is too large, or has no table of keys.
    """
    if path.suffix.lower() in (".yml", ".yaml"):
        return read_yaml(path, cleaned).values
    return sandboxed(_read_json, one_line(str(path)), rights=reading(path))(path)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their whole names, ``table.key``; an empty table is a setting itself.

    Raises:
        UserError: If there are too many, or they lie too deep.
    """
    found: dict[str, Any] = {}
    waiting: list[tuple[str, int, Any]] = [(str(key), 1, value) for key, value in reversed(list(settings.items()))]
    while waiting:
        name, depth, value = waiting.pop()
        if isinstance(value, Mapping) and value and depth < DEEPEST:
            waiting += [(f"{name}.{key}", depth + 1, inner) for key, inner in reversed(list(value.items()))]
        else:
            found[name] = value
        if len(found) + len(waiting) > MOST_SETTINGS:
            raise UserError(f"There are more than {MOST_SETTINGS} settings in an included file.", "Check the path.")
    return found


def _find(work: Translation, name: str) -> Path | None:
    """The file of a name; None where it is not here."""
    beside = work.source.path.parent
    for path in (work.places.locate(name), beside / name, beside / Path(name).name):
        try:
            if path.exists() and not path.is_dir():
                return path
        except (OSError, ValueError):
            continue
    return None


def _read_json(path: Path) -> dict[str, Any]:
    shown_path = one_line(str(path))
    try:
        read = json.loads(read_small(path, LIMIT), parse_constant=_refuse)
    except OSError as error:
        raise UserError(f"{shown_path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        # The error's own text is not shown, as it may quote the file.
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{shown_path}{line} is not JSON.", "Fix it.") from error
    if not isinstance(read, dict):
        raise UserError(f"{shown_path} must have a table of keys.", "Check the path.")
    return read


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")

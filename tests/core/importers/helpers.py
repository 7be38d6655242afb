"""Files of other tools, written and carried over."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from core.config.document import load_config
from core.config.schema import Config
from core.importers.convert import FORMS, Imported, import_config
from core.importers.translation import Entry
from tests.core.data.sample_files import json_lines, pairs, write


def carry(directory: Path, text: str, kind: str | None = None) -> Imported:
    """Import a file with this text; the result is to lie beside it."""
    return import_config(write(directory / "theirs.yml", text), kind, directory)


def entries(imported: Imported) -> list[Entry]:
    """The three lists in one."""
    return [*imported.carried, *imported.changed, *imported.unsupported]


def entry(imported: Imported, key: str) -> tuple[str, Entry]:
    """The list of a key, and its entry there; a key must be in exactly one list."""
    found = [
        (name, entry)
        for name in ("carried", "changed", "unsupported")
        for entry in getattr(imported, name)
        if entry.key == key
    ]
    assert len(found) == 1, (key, found)
    return found[0]


def assert_all_accounted(imported: Imported, given: dict[str, Any]) -> None:
    """Each key of a file has exactly one entry; keys of sections as ``section.key``."""
    keys = []
    for key, value in given.items():
        is_section = key in FORMS[imported.kind].sections and isinstance(value, dict)
        keys += [f"{key}.{name}" for name in value] if is_section else [key]
    counts = Counter(entry.key for entry in entries(imported))
    assert {key: counts[key] for key in keys} == dict.fromkeys(keys, 1)


def loaded(directory: Path, imported: Imported) -> Config:
    """The result, written beside the source and loaded as a run would."""
    path = write(directory / "ours.toml", imported.toml)
    return load_config(path)


def setting(imported: Imported, name: str) -> Any:
    """Value of an option in the configuration; None if it is not set."""
    section, _, key = name.partition(".")
    return tomllib.loads(imported.toml).get(section, {}).get(key)


def comment(imported: Imported, name: str) -> str:
    """The comment on the line of an option; empty where it has none."""
    section, _, key = name.partition(".")
    current = ""
    for line in imported.toml.splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and line.partition(" = ")[0] == key:
            return line.partition("  # ")[2]
    raise AssertionError(f"{name} is not set in\n{imported.toml}")


def rows(path: Path) -> Path:
    """A small data file."""
    return write(path, json_lines(pairs(3)))


def questions(count: int) -> str:
    """Rows of Alpaca's format."""
    return json_lines([{"instruction": f"q{number}", "input": "", "output": "a"} for number in range(count)])

"""Path kinds: the kind of a file or directory that a user named, by its name and its first bytes.

For errors about a file of the wrong kind, and for arguments that accept several kinds. The reader of the file checks it
again.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path
from typing import Literal

from core.errors import UserError
from core.small_files import open_regular
from core.text import one_line

#: ``yaml`` may be a registry of datasets, or another tool's configuration; ``other`` is a file of no known kind, and a
#: directory without anything known in it.
PathKind = Literal["missing", "data", "config", "yaml", "run", "model", "gguf", "directory", "other"]

#: Suffixes of files with rows.
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather", ".gz", ".zst")
#: Suffixes of files whose lines are JSON objects.
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
YAML_SUFFIXES = (".yml", ".yaml")
#: Scripts and notebooks, whose settings can be imported.
CODE_SUFFIXES = (".py", ".ipynb")

_HEAD_BYTES, _DESCRIPTION_BYTES = 4 << 10, 64 << 10
_DATA_MAGIC = (b"PAR1", b"ARROW1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
#: The first line of a configuration: a section, or an option with its section.
_CONFIG_LINE = re.compile(
    rb"\s*(\[\s*{0}\s*\]\s*(#.*)?|{0}\.\w+\s*=.*)".replace(
        b"{0}",
        b"(model|data|template|method|train|memory|eval|checkpoint|hardware|night|parking|tracking|chat|distributed)",
    )
)
#: Keys of a model's config.json that no other config.json has.
_MODEL_KEYS = (b'"model_type"', b'"architectures"')
_NOUNS: dict[PathKind, str] = {
    "data": "a data file",
    "config": "a configuration",
    "yaml": "YAML",
    "run": "the directory of a run",
    "model": "the directory of a model",
    "gguf": "a model (GGUF)",
}


def path_kind(path: Path) -> PathKind:
    """The kind of a path; links are followed, and nothing blocks, as opening a named pipe would."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # a name that no file can have
        return "missing"
    if stat.S_ISDIR(mode):
        return _directory_kind(path)
    if not stat.S_ISREG(mode):
        return "other"
    return _name_kind(path) or _content_kind(path)


def refuse_kind(path: Path, wanted: Literal["data", "config"]) -> None:
    """Refuse a path that is plainly of another kind than the wanted kind.

    A file of no known kind passes, and a missing file too: its reader has the better error.

    Raises:
        UserError: With the path's kind, and the command that takes it.
    """
    kind = path_kind(path)
    # A registry of datasets is YAML too, and holds data.
    if kind == wanted or kind not in _NOUNS or (kind == "yaml" and wanted == "data"):
        return
    noun = "data" if wanted == "data" else "a configuration"
    shown = one_line(str(path), 200)
    raise UserError(f"{shown} is {_NOUNS[kind]}, not {noun}.", command_for(path, kind))


def command_for(path: Path, kind: PathKind) -> str:
    """The commands that take a path of this kind, as a hint; empty if none does."""
    name = one_line(shlex.quote(str(path)), 200)
    sentences: dict[PathKind, str] = {
        "data": f"'localtune-tui {name}' opens it, 'localtune-tui init {name}' makes a configuration of it.",
        "config": f"'localtune-tui {name}' opens it, 'localtune-tui train {name}' trains as it says.",
        "yaml": f"'localtune-tui import {name}' turns another tool's configuration into one of ours.",
        "run": f"'localtune-tui --run {name}' opens it, 'localtune-tui continue {name}' goes on with it.",
        "model": f"'localtune-tui chat {name}' talks to it; to train it, name it as model.base of a configuration.",
    }
    sentences["gguf"] = sentences["model"]
    return sentences.get(kind, "")


def _directory_kind(path: Path) -> PathKind:
    if os.path.isfile(path / "run.toml"):
        return "run"
    described = _head(path / "config.json", _DESCRIPTION_BYTES)
    return "model" if any(key in described for key in _MODEL_KEYS) else "directory"


def _name_kind(path: Path) -> PathKind | None:
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return "gguf"
    if suffix == ".toml":
        return "config"
    if suffix in YAML_SUFFIXES:
        return "yaml"
    return "data" if suffix in ROW_SUFFIXES else None


def _content_kind(path: Path) -> PathKind:
    head = _head(path, _HEAD_BYTES)
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith(_DATA_MAGIC):
        return "data"
    lines = (line.strip() for line in head.removeprefix(b"\xef\xbb\xbf").splitlines())
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    if _CONFIG_LINE.fullmatch(first):
        return "config"
    return "data" if first[:2] in (b'{"', b"[{") else "other"


def _head(path: Path, size: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(size) or b""
    except (OSError, ValueError):
        return b""

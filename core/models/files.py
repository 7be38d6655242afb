"""The files of a model's directory by their names; nothing heavy is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.small_files import read_small

#: Written last into a directory that is made here: where the model came from, and the sizes of its files.
RECORD_NAME = "localtune.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
#: Weights that are programs: unpickling them runs what they say.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
#: The largest ``localtune.json``, in bytes: it has a line for each file.
_RECORD_LIMIT = 4 << 20


def read_record(directory: Path) -> dict[str, Any] | None:
    """What ``localtune.json`` says, or None when the directory is not one of ours or a file of it has another size."""
    try:
        record = json.loads(read_small(directory / RECORD_NAME, _RECORD_LIMIT))
        sizes = record["files"]
        whole = all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if whole and sizes else None

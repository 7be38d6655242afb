"""File names in a model directory, without heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.small_files import read_json

#: Record written last into a directory made by this program: the model's origin, and the sizes of its files.
RECORD_NAME = "localtune.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
#: Pickled weights: unpickling runs code.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
#: Largest ``localtune.json``, in bytes: it has a line for each file.
_RECORD_LIMIT = 4 << 20


def read_record(directory: Path) -> dict[str, Any] | None:
    """Content of ``localtune.json``, or None if the directory is not one of ours or a file of it has another size."""
    try:
        record = read_json(directory / RECORD_NAME, _RECORD_LIMIT)
        sizes = record["files"]
        whole = all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole and sizes else None

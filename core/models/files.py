"""The files of a model's directory by their names, and what tells one base from another; nothing heavy is imported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

#: Written last into a directory that is made here: where the model came from, and the sizes of its files.
RECORD_NAME = "localtune.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
#: Weights that are programs: unpickling them runs what they say.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
#: Bytes hashed at either end of a weight file.
FINGERPRINT_BYTES = 1 << 20


def read_record(directory: Path) -> dict[str, Any] | None:
    """What ``localtune.json`` says, or None when the directory is not one of ours or a file of it has another size."""
    try:
        record = json.loads((directory / RECORD_NAME).read_bytes())
        sizes = record["files"]
        whole = all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if whole and sizes else None


def weights_fingerprint(directory: Path) -> str:
    """SHA-256 over the names, sizes and both ends of the weight files: tells one base from another in no time.

    The files are gigabytes; their ends, a mebibyte each, hold the header and weights that any training changes.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(FINGERPRINT_BYTES))
            file.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()

"""The sample dataset and the configuration that trains on it: support tickets turned into JSON."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

#: What is in it.
NAMES = ("tickets.toml", "tickets_train.jsonl", "tickets_eval.jsonl", "README.md")


def path(name: str) -> Path:
    """Where a file of the sample lies, in a checkout as in an installed wheel.

    Args:
        name: One of :data:`NAMES`.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    found = Path(str(files(__name__).joinpath(name)))
    if not found.is_file():
        raise FileNotFoundError(f"{name} is not part of the sample data: {', '.join(NAMES)} are.")
    return found

"""The sample dataset and the configuration that trains on it: support tickets turned into JSON."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

#: The files of the sample.
NAMES = ("tickets.toml", "tickets_train.jsonl", "tickets_eval.jsonl", "README.md")


def path(name: str) -> Path:
    """The path of a sample file, in a checkout or an installed wheel.

    Args:
        name: One of :data:`NAMES`.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    found = Path(str(files(__name__).joinpath(name)))
    if not found.is_file():
        raise FileNotFoundError(f"{name} is not part of the sample data: {', '.join(NAMES)} are.")
    return found

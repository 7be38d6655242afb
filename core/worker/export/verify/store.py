"""The measured answers of the trained model, in files: one process writes them, another compares with them.

Logits of a large vocabulary do not fit in memory beside a model: they are written as they come and read row by row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.directories import require_space

#: Most places of an answer whose logits are kept.
MOST_PLACES = 64
#: Most bytes of the logits of one model on disk; of a large vocabulary fewer places are kept.
MOST_BYTES = 1 << 30

Logits = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ProofRow:
    """A row of the user's data, as training has it."""

    messages: list[dict[str, Any]]
    """The conversation before the answer; empty for plain text and tokens."""
    tools: list[dict[str, Any]]
    text: str
    """Plain text; empty for conversations."""
    prompt_ids: list[int]
    """Tokens of the rendered prompt, or of the plain text; empty where the row has none."""
    input_ids: list[int]
    """Tokens of the row, up to the last place that is compared."""
    positions: list[int]
    """Places whose next token belongs to the answer, ascending."""


@dataclass(frozen=True)
class Proof:
    """The answers of the trained model, and of models near it, in a directory."""

    directory: Path
    rows: list[ProofRow]
    greedy: list[list[int]]
    """The greedy answer to each prompt, with the token that ended it; empty for rows without a prompt to answer."""
    vocabulary: int
    """Logits at a place."""
    data: str
    """Where the rows are from: ``eval``, ``held_out`` or ``training``."""
    now: str
    """The date that templates write, as ISO has it; empty for the present."""
    arithmetic: str
    """Of the measured model: ``fp32``, or what its training computed in where that does not fit."""

    @property
    def places(self) -> int:
        """Places compared, of all rows."""
        return sum(len(row.positions) for row in self.rows)

    def write(self) -> None:
        """Write what is not logits."""
        content = {**asdict(self), "directory": ""}
        (self.directory / "rows.json").write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Proof:
        """What :meth:`write` has written."""
        content = json.loads((directory / "rows.json").read_text(encoding="utf-8"))
        rows = [ProofRow(**row) for row in content["rows"]]
        return cls(**{**content, "directory": directory, "rows": rows})

    def logits(self, model: str) -> LogitsFile | None:
        """The measured logits of a model; None where it was not measured."""
        return LogitsFile.find(self.directory, model, self.vocabulary)


class LogitsFile:
    """Logits of one model, place after place: those of the first row first.

    Args:
        path: The file.
        vocabulary: Logits at a place.
    """

    def __init__(self, path: Path, vocabulary: int) -> None:
        self._path = path
        self._dtype = np.dtype(np.float16 if path.suffix == ".f16" else np.float32)
        self._vocabulary = vocabulary

    @classmethod
    def make(cls, directory: Path, model: str, vocabulary: int, *, half: bool = False) -> LogitsFile:
        """A new file; in 16 bits where a rough comparison is enough."""
        return cls(directory / f"{model}.{'f16' if half else 'f32'}", vocabulary)

    @classmethod
    def find(cls, directory: Path, model: str, vocabulary: int) -> LogitsFile | None:
        """The file of a model, if there is one."""
        found = next(iter(sorted(directory.glob(f"{model}.f*"))), None)
        return None if found is None else cls(found, vocabulary)

    def append(self, rows: Logits) -> None:
        """Add logits, ``(places, vocabulary)``, each place centered on its mean: only differences mean anything."""
        wide = rows.astype(np.float32, copy=False)
        centered = wide - wide.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        with self._path.open("ab") as file:
            centered.astype(self._dtype).tofile(file)

    def read(self, begin: int, count: int) -> Logits:
        """Logits of some places, ``(count, vocabulary)``."""
        size = self._vocabulary * self._dtype.itemsize
        flat = np.fromfile(self._path, self._dtype, count * self._vocabulary, offset=begin * size)
        return flat.reshape(count, self._vocabulary)


def places_kept(rows: int, vocabulary: int) -> int:
    """Most places of a row, so that the logits of all rows are not too large for the disk."""
    return max(1, min(MOST_PLACES, MOST_BYTES // (4 * max(vocabulary, 1) * max(rows, 1))))


def require_room(directory: Path, rows: Sequence[ProofRow], vocabulary: int, models: int) -> None:
    """Refuse to start where the disk has no room for the logits.

    Raises:
        UserError: If there is none.
    """
    places = sum(len(row.positions) for row in rows)
    require_space(directory, places * vocabulary * 4 * models, "the proof of the export", "Make room there.")

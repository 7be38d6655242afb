"""Files with the measured answers of the trained model, for the processes that compare exports with them.

Logits of a large vocabulary do not fit in memory beside a model: they are written as they are computed, and read row
by row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.directories import require_space

#: Most places per answer with stored logits.
MOST_PLACES = 64
#: Most bytes of a model's logits on disk; a large vocabulary gets fewer places.
MOST_BYTES = 1 << 30

Logits = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ProofRow:
    """A row of the user's data, encoded as in training."""

    messages: list[dict[str, Any]]
    """The conversation before the answer; empty for plain text and tokens."""
    tools: list[dict[str, Any]]
    text: str
    """Plain text; empty for conversations."""
    prompt_ids: list[int]
    """Tokens of the rendered prompt, or of the plain text; empty if the row has none."""
    input_ids: list[int]
    """Tokens of the row, up to the last compared place."""
    positions: list[int]
    """Places whose next token belongs to the answer, ascending."""


@dataclass(frozen=True)
class Proof:
    """The answers of the trained model, and of related models, in a directory."""

    directory: Path
    rows: list[ProofRow]
    greedy: list[list[int]]
    """The greedy answer to each prompt, including its stop token; empty for rows without a prompt."""
    vocabulary: int
    """Logits per place."""
    data: str
    """Source of the rows: ``eval``, ``held_out`` or ``training``."""
    now: str
    """The date for templates, in ISO format; empty for the present."""
    arithmetic: str
    """Arithmetic of the measured model: ``fp32``, or its training's where that does not fit."""

    @property
    def places(self) -> int:
        """Compared places of all rows."""
        return sum(len(row.positions) for row in self.rows)

    def write(self) -> None:
        """Write everything except the logits."""
        content = {**asdict(self), "directory": ""}
        (self.directory / "rows.json").write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Proof:
        """Read the result of :meth:`write`."""
        content = json.loads((directory / "rows.json").read_text(encoding="utf-8"))
        rows = [ProofRow(**row) for row in content["rows"]]
        return cls(**{**content, "directory": directory, "rows": rows})

    def logits(self, model: str) -> LogitsFile | None:
        """The measured logits of a model; None where it was not measured."""
        found = next(self.directory.glob(f"{model}.f*"), None)
        return None if found is None else LogitsFile(found, self.vocabulary)


class LogitsFile:
    """Logits of a model, place after place, in the order of the rows.

    Args:
        path: The file; with the suffix ``.f16`` in 16 bits, where a rough comparison is enough, else ``.f32``.
        vocabulary: Logits per place.
    """

    def __init__(self, path: Path, vocabulary: int) -> None:
        self._path = path
        self._dtype = np.dtype(np.float16 if path.suffix == ".f16" else np.float32)
        self._vocabulary = vocabulary

    def append(self, rows: Logits) -> None:
        """Append logits, ``(places, vocabulary)``, each place centered on its mean: only differences matter."""
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
    """Most places per row such that the logits of all rows fit on the disk."""
    return max(1, min(MOST_PLACES, MOST_BYTES // (4 * max(vocabulary, 1) * max(rows, 1))))


def require_room(directory: Path, rows: Sequence[ProofRow], vocabulary: int, models: int) -> None:
    """Raise an error where the disk has no room for the logits.

    Raises:
        UserError: If so.
    """
    places = sum(len(row.positions) for row in rows)
    require_space(directory, places * vocabulary * 4 * models, "the proof of the export", "Make room there.")

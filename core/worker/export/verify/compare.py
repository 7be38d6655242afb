"""Measured answers of the trained model in files, and the comparison of an exported file with them, through any reader.

Logits of a large vocabulary do not fit in memory beside a model: they are written as they are computed, and read row
by row.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from core.data.conversation import RowError
from core.directories import Progress, require_space
from core.export.plan import MEASURING_FILE

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


#: Names of the measured models.
MODELS = ("trained", "plain", "base")


class Reader(Protocol):
    """A program that has loaded the exported file."""

    @property
    def name(self) -> str:
        """The program, with its version."""

    def prompt_ids(self, row: ProofRow) -> list[int]:
        """Tokens of a row's prompt, by the file's own tokenizer and template.

        Raises:
            RowError: If its template refuses the conversation.
        """

    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> Iterator[Logits]:
        """Logits after the tokens at some positions, ``(vocabulary,)`` in fp32 each."""


class Place:
    """The logits of a model at a place, in fp64.

    Args:
        logits: The logits; those beyond ``size`` are the padding of a vocabulary.
        size: Number of them; by default all.
    """

    def __init__(self, logits: Logits, size: int | None = None) -> None:
        wide = logits[:size].astype(np.float64)
        self.centered: Logits = wide - wide.mean()
        highest = self.centered.max()
        self.log: Logits = self.centered - (highest + np.log(np.exp(self.centered - highest).sum()))


@dataclass
class Figures:
    """Sums over the places compared with one model."""

    places: int = 0
    divergence: float = 0.0
    same: int = 0
    delta: float = 0.0
    squares: float = 0.0
    differences: float = 0.0

    def add(self, wanted: Place, found: Place) -> None:
        """Compare the logits at a place."""
        first, second, log_first, log_second = wanted.centered, found.centered, wanted.log, found.log
        self.places += 1
        # Rounding can make it slightly negative.
        self.divergence += max(float((np.exp(log_first) * (log_first - log_second)).sum()), 0.0)
        self.same += int(first.argmax() == second.argmax())
        self.delta = max(self.delta, float(np.abs(first - second).max()))
        self.squares += float((first * first).mean())
        self.differences += float(((first - second) ** 2).mean())

    def to_dict(self) -> dict[str, float]:
        """The means, and the largest difference; empty where nothing was compared."""
        if not self.places:
            return {}
        return {
            "mean_kl": self.divergence / self.places,
            "top1": self.same / self.places,
            "max_delta": self.delta,
            "error": self.differences / max(self.squares, 1e-12),
        }


@dataclass
class Comparison:
    """Result of comparing a file with the trained model."""

    figures: dict[str, Figures] = field(default_factory=dict)
    prompts: int = 0
    prompts_equal: int = 0
    answers: int = 0
    answers_equal: int = 0
    learned: Figures = field(default_factory=Figures)
    """The base against the trained model."""
    is_finite: bool = False
    """True if all logits of the file are numbers."""

    def to_dict(self, proof: Proof, reader: str) -> dict[str, Any]:
        """The fields of a :class:`core.export.result.Agreement`, but for the method of the training."""
        own, plain, base = (self.figures.get(name, Figures()).to_dict() for name in MODELS)
        return {
            "rows": len(proof.rows),
            "prompts_equal": self.prompts_equal == self.prompts,
            **{name: own.get(name) for name in ("mean_kl", "top1", "max_delta", "error")},
            "greedy_equal": self.answers_equal if self.answers else None,
            "reader": reader,
            "greedy_rows": self.answers,
            "data": proof.data,
            "arithmetic": proof.arithmetic,
            "plain": plain or None,
            "base_kl": base.get("mean_kl"),
            "is_finite": self.is_finite,
            "learned_kl": self.learned.to_dict().get("mean_kl"),
        }


def compare(proof: Proof, reader: Reader, progress: Progress) -> Comparison:
    """Compare a reader's results for the file with the measured answers.

    A greedy answer is equal if each of its tokens is the likeliest after the previous ones; a single pass over prompt
    and answer decides that.

    Args:
        proof: The measured answers.
        reader: The reader, with the file loaded.
        progress: Called with the number of finished rows; it may raise to cancel.

    """
    known = {name: file for name in MODELS if (file := proof.logits(name)) is not None}
    result = Comparison({name: Figures() for name in known})
    begin = 0
    with contextlib.suppress(FloatingPointError):
        for done, (row, greedy) in enumerate(zip(proof.rows, proof.greedy, strict=True)):
            progress(MEASURING_FILE, done, len(proof.rows))
            same_prompt = _compare_prompt(row, reader, result)
            _compare_places(row, reader, known, begin, result)
            begin += len(row.positions)
            if greedy:
                result.answers += 1
                result.answers_equal += same_prompt and _answers_so(reader, row.prompt_ids, greedy)
        result.is_finite = True
    progress(MEASURING_FILE, len(proof.rows), len(proof.rows))
    return result


def _compare_prompt(row: ProofRow, reader: Reader, result: Comparison) -> bool:
    """True if the file's tokenizer and template produce the prompt of training."""
    if not row.prompt_ids:
        return True
    try:
        same = reader.prompt_ids(row) == row.prompt_ids
    except RowError:
        same = False
    result.prompts += 1
    result.prompts_equal += same
    return same


def _compare_places(
    row: ProofRow, reader: Reader, known: dict[str, LogitsFile], begin: int, result: Comparison
) -> None:
    wanted = {name: file.read(begin, len(row.positions)) for name, file in known.items()} if row.positions else {}
    if not wanted:
        return
    for place, found in enumerate(reader.logits(row.input_ids, row.positions)):
        _check_finite(found)
        size = min(len(found), *(rows.shape[1] for rows in wanted.values()))
        own = Place(found, size)
        others = {name: Place(rows[place], size) for name, rows in wanted.items()}
        for name, other in others.items():
            result.figures[name].add(other, own)
        if "base" in others and "trained" in others:
            result.learned.add(others["trained"], others["base"])


def _answers_so(reader: Reader, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    tokens = [*prompt, *answer[:-1]]
    positions = range(len(prompt) - 1, len(tokens))
    return all(
        int(found.argmax()) == token for found, token in zip(reader.logits(tokens, positions), answer, strict=True)
    )


def _check_finite(logits: Logits) -> None:
    if not np.isfinite(logits).all():
        raise FloatingPointError

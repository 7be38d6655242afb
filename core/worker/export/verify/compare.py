"""Comparison of an exported file with the measured answers of the trained model, through any reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from core.data.conversation import RowError
from core.directories import Progress
from core.errors import UserError
from core.export.stages import MEASURING_FILE
from core.worker.export.verify.store import LogitsFile, Proof, ProofRow

Logits = np.ndarray[Any, np.dtype[Any]]
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


@dataclass
class Figures:
    """Sums over the places compared with one model."""

    places: int = 0
    divergence: float = 0.0
    same: int = 0
    delta: float = 0.0
    squares: float = 0.0
    differences: float = 0.0

    def add(self, wanted: Logits, found: Logits) -> None:
        """Compare the logits at a place; ``found`` may have more of them, with a padded vocabulary."""
        size = min(len(wanted), len(found))
        first, second = _centered(wanted[:size]), _centered(found[:size])
        log_first, log_second = _log_shares(first), _log_shares(second)
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

    Raises:
        UserError: If the file's logits are not finite.
    """
    known = {name: file for name in MODELS if (file := proof.logits(name)) is not None}
    result = Comparison({name: Figures() for name in known})
    begin = 0
    for done, (row, greedy) in enumerate(zip(proof.rows, proof.greedy, strict=True)):
        progress(MEASURING_FILE, done, len(proof.rows))
        same_prompt = _compare_prompt(row, reader, result)
        _compare_places(row, reader, known, begin, result)
        begin += len(row.positions)
        if greedy:
            result.answers += 1
            result.answers_equal += same_prompt and _answers_so(reader, row.prompt_ids, greedy)
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
        for name, rows in wanted.items():
            result.figures[name].add(rows[place], found)
        if "base" in wanted and "trained" in wanted:
            result.learned.add(wanted["trained"][place], wanted["base"][place])


def _answers_so(reader: Reader, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    tokens = [*prompt, *answer[:-1]]
    positions = range(len(prompt) - 1, len(tokens))
    return all(
        int(found.argmax()) == token for found, token in zip(reader.logits(tokens, positions), answer, strict=True)
    )


def _check_finite(logits: Logits) -> None:
    if not np.isfinite(logits).all():
        raise UserError(
            "The exported file computes values that are no numbers (NaN or infinite).",
            "Export it again; where that is no better, take a wider type of weights.",
        )


def _centered(logits: Logits) -> Logits:
    wide = logits.astype(np.float64)
    centered: Logits = wide - wide.mean()
    return centered


def _log_shares(logits: Logits) -> Logits:
    highest = logits.max()
    shares: Logits = logits - (highest + np.log(np.exp(logits - highest).sum()))
    return shares

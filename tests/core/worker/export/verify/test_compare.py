from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.conversation import RowError
from core.worker.export.verify.compare import (
    MOST_BYTES,
    MOST_PLACES,
    Figures,
    LogitsFile,
    Place,
    Proof,
    ProofRow,
    compare,
    places_kept,
)
from tests.progress import quiet


def test_figures_match_the_definitions() -> None:
    first, second = np.array([2.0, 0.0, -1.0]), np.array([1.0, 2.0, -3.0])
    shares = [np.exp(each) / np.exp(each).sum() for each in (first, second)]
    figures = Figures()
    figures.add(Place(first), Place(second + 7.0))
    figures.add(Place(first), Place(np.append(first, -30.0), 3))
    found = figures.to_dict()
    divergence = float((shares[0] * np.log(shares[0] / shares[1])).sum())
    assert found["mean_kl"] == pytest.approx(divergence / 2)
    assert found["top1"] == 0.5
    centered = [each - each.mean() for each in (first, second)]
    assert found["max_delta"] == pytest.approx(np.abs(centered[0] - centered[1]).max())
    squares = ((centered[0] - centered[1]) ** 2).mean() / (centered[0] ** 2).mean() / 2
    assert found["error"] == pytest.approx(squares)
    assert Figures().to_dict() == {}


def test_the_logits_of_a_large_vocabulary_are_bounded() -> None:
    assert places_kept(20, 49152) == MOST_PLACES
    assert 20 * places_kept(20, 262144) * 262144 * 4 <= MOST_BYTES
    assert places_kept(1000, 1 << 20) == 1


class Scripted:
    """A reader whose answers are given."""

    name = "scripted 1"

    def __init__(self, logits: dict[int, Any], prompts: dict[str, list[int] | None]) -> None:
        self._logits, self._prompts = logits, prompts

    def prompt_ids(self, row: ProofRow) -> list[int]:
        found = self._prompts[row.text]
        if found is None:
            raise RowError("template_error", "No.")
        return found

    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> Iterator[Any]:
        yield from (self._logits[tokens[place]] for place in positions)


def one_hot(place: int, size: int = 5) -> Any:
    return np.eye(size, dtype=np.float32)[place] * 9


#: After each token the next one is the likeliest.
COUNTING = {token: one_hot((token + 1) % 5) for token in range(5)}


def make_proof(directory: Path, greedy: list[list[int]]) -> Proof:
    rows = [
        ProofRow([{"role": "user"}], [], "one", [1, 2], [1, 2, 3], [1, 2]),
        ProofRow([{"role": "user"}], [], "two", [0, 1], [0, 1], []),
        ProofRow([], [], "", [], [4, 0, 1], [0, 2]),
    ]
    proof = Proof(directory, rows, greedy, 5, "eval", "", "fp32")
    trained = LogitsFile(directory / "trained.f32", 5)
    for row in rows:
        if row.positions:
            trained.append(np.stack([COUNTING[row.input_ids[place]] for place in row.positions]))
    proof.write()
    return Proof.read(directory)


def test_answers_that_part_anywhere_are_not_equal(tmp_path: Path) -> None:
    proof = make_proof(tmp_path, [[3, 4, 1], [2], []])
    reader = Scripted(COUNTING, {"one": [1, 2], "two": None})
    found = compare(proof, reader, quiet)
    assert (found.prompts, found.prompts_equal) == (2, 1), "a template that refuses makes no prompt"
    assert (found.answers, found.answers_equal) == (2, 0), "the last token differs; and the prompt of the other"
    fields = found.to_dict(proof, "r")
    assert (fields["prompts_equal"], fields["greedy_equal"], fields["greedy_rows"]) == (False, 0, 2)

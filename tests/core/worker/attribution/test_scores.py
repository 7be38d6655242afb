"""Scores by the inverse of the Gram matrix, the gap in them, and the words that matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from core.worker.attribution.job import strongest
from core.worker.attribution.scores import DAMPING, alike, direction, nearest
from tests.cases import cases


def draw(rows: int, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    found = np.random.default_rng(0).standard_normal((rows, size)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


@cases(("rows", "size"), [(20, 50), (50, 20)], ids=["fewer rows", "more rows"])
def test_scores_are_those_of_the_inverse_gram_matrix(rows: int, size: int) -> None:
    units, question = draw(rows, size), 7 * draw(rows + 1, size)[-1]
    gram, own = (units @ units.T).astype(np.float64), units @ question / np.linalg.norm(question)
    wanted = own - gram @ np.linalg.solve(gram + DAMPING * rows * np.eye(rows), own)
    found = units @ direction(units, question, torch.device("cpu"))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_direction_that_all_rows_share_counts_less_than_one_of_a_few() -> None:
    units = 0.3 * draw(200, 400)
    units[:, 0] += 1
    units[:5, 1] += 1
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    question = np.zeros(400, dtype=np.float32)
    question[:2] = 1
    scores = units @ direction(units, question, torch.device("cpu"))
    assert set(np.argsort(-scores)[:5]) == set(range(5))
    assert scores[:5].min() > 3 * scores[5:].max()


@cases(
    ("scores", "count"),
    [
        ([1.0, 0.95, 0.9, 0.4, 0.38, 0.1], 3),
        ([1.0, 0.3, 0.2], 1),
        ([1.0, 0.9, 0.8, 0.75], 4),
        ([1.0, 0.9, -0.5], 2),
        ([-0.1, -0.2], 0),
        ([], 0),
    ],
)
def test_rows_up_to_the_gap_are_alike(scores: list[float], count: int) -> None:
    assert alike(scores) == count


def test_candidates_are_nearest_by_what_differs_from_the_mean() -> None:
    hidden = draw(30, 16) + np.float32(10)
    assert nearest(hidden, hidden[7] + np.float32(0.01), 3)[0] == 7
    assert len(nearest(hidden, hidden[7], 100)) == 30


def test_the_strongest_words_have_the_largest_parts_of_the_score() -> None:
    words = [(0, 4), (5, 9), (10, 15)]
    parts = [(0, 2, 0.1), (2, 4, 0.1), (4, 9, 2.0), (9, 12, -1.0), (12, 15, 2.4)]
    assert strongest(words, parts) == ((5, 9), (10, 15))
    assert strongest(words, [(0, 15, -1.0)]) == ()
    assert strongest([], parts) == ()

"""Scores of training rows for an answer: dot products of unit gradients through the inverse of their own Gram matrix.

With ``X`` the unit gradients of the rows, ``q`` that of the question and ``c`` the damping, the scores are ``c X (X'X +
c)^-1 q``: what many rows have in common, such as the form of an answer, counts little, and what sets a few apart counts
much. The same numbers come from a matrix of rows by rows or of places by places; the smaller one is inverted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

FloatRows = np.ndarray[Any, np.dtype[np.float32]]

#: Damping as a share of the number of rows; results hardly change within a factor of ten.
DAMPING = 0.01
#: Most rows that belong together, and the least share of the first one's score that they have.
MOST_ALIKE, LEAST_SHARE = 50, 1 / 3


def direction(units: FloatRows, question: FloatRows, device: torch.device) -> FloatRows:
    """The direction whose dot product with a row's unit gradient is the row's score.

    Args:
        units: Unit gradients of the rows, ``(rows, size)``.
        question: Gradient of the question, ``(size,)``, of any length.
        device: Where the matrix is inverted.
    """
    x = torch.from_numpy(units).to(device)
    q = torch.from_numpy(question / max(float(np.linalg.norm(question)), 1e-30)).to(device)
    rows, size = x.shape
    damping = DAMPING * rows
    few = rows < size
    found = q - x.T @ _solve(x @ x.T, x @ q, damping) if few else damping * _solve(x.T @ x, q, damping)
    return np.asarray(found.cpu().numpy(), dtype=np.float32)


def _solve(matrix: torch.Tensor, right: torch.Tensor, damping: float) -> torch.Tensor:
    """``(matrix + damping)^-1 right``; the matrix is overwritten."""
    matrix.diagonal().add_(damping)
    return torch.cholesky_solve(right[:, None], torch.linalg.cholesky(matrix))[:, 0]


def likeness(hidden: FloatRows, question: FloatRows) -> FloatRows:
    """Cosines of rows' hidden states with the question's after the mean is taken off, times a factor that they share:
    ``(rows,)``.

    Args:
        hidden: Of the rows, ``(rows, hidden)``.
        question: Of the question, ``(hidden,)``.
    """
    mean = hidden.mean(axis=0)
    centered = hidden - mean
    return np.asarray(centered @ (question - mean) / np.maximum(np.linalg.norm(centered, axis=1), 1e-30))


def nearest(hidden: FloatRows, question: FloatRows, count: int) -> list[int]:
    """Rows whose hidden states are most like the question's, by :func:`likeness`."""
    return [int(at) for at in np.argsort(-likeness(hidden, question), kind="stable")[:count]]


def alike(scores: Sequence[float]) -> int:
    """Number of rows up to the gap in the scores: the largest fall from one to the next among those that have at least
    a third of the first.

    Args:
        scores: Scores, the largest first.
    """
    if not scores or scores[0] <= 0:
        return 0
    strong = [score for score in scores[:MOST_ALIKE] if score >= LEAST_SHARE * scores[0]]
    after = [*strong[1:], max(scores[len(strong)], 0.0) if len(scores) > len(strong) else 0.0]
    falls = [score - following for score, following in zip(strong, after, strict=True)]
    return falls.index(max(falls)) + 1

"""Beginnings of adapters that are computed from the base's weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Columns beyond the rank, and power iterations, of the randomized decomposition (Halko et al., arXiv 0909.4061).
OVERSAMPLING, ITERATIONS = 16, 4


@dataclass(frozen=True)
class Factors:
    """Two factors of a matrix; ``scale * up @ down`` is what the adapter adds to it.

    Args:
        down: ``(rank, inputs)``, fp32.
        up: ``(outputs, rank)``, fp32.
    """

    down: torch.Tensor
    up: torch.Tensor


def pissa_factors(weight: torch.Tensor, rank: int, scale: float) -> Factors:
    """The principal singular directions of a matrix (PiSSA, arXiv 2404.02948).

    Args:
        weight: ``(outputs, inputs)``, fp32.
        rank: Of the adapter; at most the smaller side.
        scale: What the adapter's output is multiplied by.
    """
    return _balanced(weight, rank, scale)


def loftq_factors(full: torch.Tensor, quantized: torch.Tensor, rank: int, scale: float) -> Factors:
    """Low-rank factors that best make up for a matrix's rounding (LoftQ, arXiv 2310.08659; one step, rounding kept).

    Args:
        full: The matrix before it was quantized, ``(outputs, inputs)``, fp32.
        quantized: The same after.
        rank: As above.
        scale: As above; the factors are divided by it, so that the sum is the nearest whatever it is.
    """
    return _balanced(full - quantized, rank, scale)


def _balanced(matrix: torch.Tensor, rank: int, scale: float) -> Factors:
    """The best approximation of a rank, its singular values shared equally by both factors."""
    left, values, right = _decompose(matrix, rank)
    roots = (values / scale).sqrt()
    return Factors((roots[:, None] * right.T).contiguous(), (left * roots).contiguous())


def _decompose(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular vectors and values: all of a small matrix, the greatest of a large one by random projection."""
    wanted = rank + OVERSAMPLING
    if 4 * wanted >= min(matrix.shape):
        left, values, transposed = torch.linalg.svd(matrix, full_matrices=False)
        right = transposed.T
    else:
        left, values, right = torch.svd_lowrank(matrix, wanted, niter=ITERATIONS)
    return left[:, :rank], values[:rank], right[:, :rank]

"""The losses of preference training, from log-probabilities of whole answers.

Sources: DPO, arXiv 2305.18290; IPO, arXiv 2310.12036; the hinge of SLiC, arXiv 2305.10425; ORPO, arXiv 2403.07691; KTO,
arXiv 2402.01306.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

DpoLoss = Literal["sigmoid", "ipo", "hinge"]


def dpo_losses(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, kind: DpoLoss) -> torch.Tensor:
    """The loss of each pair.

    Args:
        chosen: ``(pairs,)``: by how much the better answer's log-probability is above that of the reference; for
            ``ipo`` divided by the answer's tokens, as its authors do so that long answers do not decide alone.
        rejected: ``(pairs,)``: the same of the worse answer.
        beta: How strongly the reference binds; for ``ipo`` the paper's tau.
        kind: Which loss of the difference.

    Returns:
        ``(pairs,)``.
    """
    difference = chosen - rejected
    if kind == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return torch.relu(1 - beta * difference)
    return -F.logsigmoid(beta * difference)


def odds_ratio_losses(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """ORPO's second term for each pair, its factor left out: how far the odds of the better answer are not above those
    of the worse one.

    Args:
        chosen: ``(pairs,)``: the better answer's log-probability, as the mean over its tokens.
        rejected: ``(pairs,)``: the same of the worse answer.

    Returns:
        ``(pairs,)``.
    """
    log_odds = (chosen - rejected) - (_log_complement(chosen) - _log_complement(rejected))
    return -F.logsigmoid(log_odds)


def _log_complement(log_probability: torch.Tensor) -> torch.Tensor:
    """``log(1 - exp(x))`` for ``x`` below 0; finite where an answer is all but certain."""
    return torch.log(-torch.expm1(log_probability.clamp(max=-1e-6)))


def kto_losses(
    ratios: torch.Tensor, good: torch.Tensor, divergence: torch.Tensor, beta: float, weights: tuple[float, float]
) -> torch.Tensor:
    """The loss of each answer.

    Args:
        ratios: ``(rows,)``: by how much the answer's log-probability is above that of the reference.
        good: ``(rows,)``, bool: whether it was called good.
        divergence: A scalar without gradient: how far the model is from the reference, not below 0; the point from
            which gains and losses count.
        beta: How strongly the reference binds.
        weights: Of good answers, and of bad ones.

    Returns:
        ``(rows,)``.
    """
    gain = torch.where(good, ratios - divergence, divergence - ratios)
    desirable, undesirable = weights
    weight = torch.where(good, torch.full_like(gain, desirable), torch.full_like(gain, undesirable))
    return weight * (1 - torch.sigmoid(beta * gain))

"""Cross-entropy of logits whose gradient overwrites them, so that the logits are the only large tensor of the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from core.memory.batching import slice_positions


@dataclass(frozen=True)
class Scaling:
    """Scaling and soft-capping of logits: ``cap * tanh(scale * x / cap)``, or ``scale * x`` without a cap.

    Args:
        scale: The factor.
        softcap: Bound of the logits' size; None for no bound.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale and cap in the dtype of the logits, as transformers does."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


class CrossEntropy:
    """Cross-entropy by torch's own operations, in fp32, for a few positions at a time."""

    def losses(self, logits: torch.Tensor, targets: torch.Tensor, scaling: Scaling) -> torch.Tensor:
        """Negative log-likelihood of the targets.

        Args:
            logits: ``(n, vocabulary)``, before scaling.
            targets: ``(n,)``, int64.
            scaling: The scaling.

        Returns:
            ``(n,)``, fp32.
        """
        return torch.cat([_losses(logits[part], targets[part], scaling) for part in _slices(logits)])

    def differentiate(
        self, logits: torch.Tensor, targets: torch.Tensor, scaling: Scaling, factors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Overwrite the logits by their gradient.

        Args:
            logits: ``(n, vocabulary)``, before scaling; without a graph.
            targets: ``(n,)``, int64.
            scaling: The scaling.
            factors: Gradients of the losses, ``(n,)``, fp32; ones if None.

        Returns:
            The losses, as :meth:`losses`.
        """
        if factors is None:
            factors = torch.ones((), device=logits.device).expand(len(targets))
        return torch.cat(
            [_differentiate(logits[part], targets[part], factors[part], scaling) for part in _slices(logits)]
        )


def _slices(logits: torch.Tensor) -> list[slice]:
    """Slices of positions, at least one."""
    size = slice_positions(logits.shape[1], logits.device.type)
    return [slice(start, start + size) for start in range(0, max(len(logits), 1), size)]


def _losses(logits: torch.Tensor, targets: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    return F.cross_entropy(scaling(logits).float(), targets, reduction="none")


def _differentiate(
    logits: torch.Tensor, targets: torch.Tensor, factors: torch.Tensor, scaling: Scaling
) -> torch.Tensor:
    with torch.enable_grad():
        losses = _losses(logits.requires_grad_(), targets, scaling)
    (gradient,) = torch.autograd.grad(losses, logits, factors)
    logits.detach().copy_(gradient)
    return losses.detach()

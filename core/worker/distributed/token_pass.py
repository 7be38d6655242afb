"""A pass of a single token that has no weight: the part of a process in a pass of the others."""

from __future__ import annotations

from typing import Any

import torch

from core.worker.model.model import decoder_of


def token(device: torch.device) -> torch.Tensor:
    """The token, ``(1, 1)``."""
    return torch.zeros((1, 1), dtype=torch.int64, device=device)


def run_token(causal: Any, device: torch.device) -> None:
    """Run it forward and backward: the gradients of all that is trained are zero, and there.

    Args:
        causal: A causal language model of transformers.
        device: Where it runs.
    """
    states = decoder_of(causal)(input_ids=token(device), use_cache=False).last_hidden_state
    head = causal.get_output_embeddings()
    trained = any(parameter.requires_grad for parameter in head.parameters())
    (0.0 * (head(states) if trained else states).float().sum()).backward()

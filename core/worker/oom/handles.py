"""Handles of cuBLAS: memory of the GPU outside torch's allocator, taken while there is some."""

from __future__ import annotations

import torch


def create_handles(device: torch.device) -> None:
    """Create the handles of both threads that multiply. Each takes its own at its first product, that of autograd at
    the first backward pass, when a card may be full of what the allocator caches.

    Args:
        device: Of the run; on a CPU there are none.
    """
    if device.type == "cuda":
        multiply_both_ways(device)


def multiply_both_ways(device: torch.device) -> None:
    """A small product, forward and backward."""
    square = torch.ones(16, 16, device=device, requires_grad=True)
    (square @ square).sum().backward()  # type: ignore[no-untyped-call]

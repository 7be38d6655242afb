"""Trial of torch's CUDA."""

from __future__ import annotations

import torch


def cuda_error() -> str | None:
    """Reason why a CUDA build of torch cannot use a card; None if it can, or is a CPU build."""
    if torch.version.cuda is None and torch.version.hip is None:
        return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        # An installation without kernels for this card imports well and fails at the first product.
        square = torch.ones(16, 16, device="cuda")
        torch.cuda.synchronize((square @ square).device)
    except Exception as error:  # any failure means that the card cannot be used
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None

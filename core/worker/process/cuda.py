"""CUDA as torch finds it: whether it computes, and why not."""

from __future__ import annotations

import torch


def cuda_error() -> str | None:
    """Reason for which a torch with CUDA cannot use a card; None where it can, or was built without."""
    if torch.version.cuda is None and torch.version.hip is None:
        return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        # An installation without kernels for this card imports well and fails at the first product.
        square = torch.ones(16, 16, device="cuda")
        torch.cuda.synchronize((square @ square).device)
    except Exception as error:  # whatever it is, it keeps the card from being used
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None

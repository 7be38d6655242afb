"""Memory of RMS normalization, kept and transient, for each implementation."""

from __future__ import annotations

from typing import Literal

from core.memory.steps import FP32, Arithmetic, Step
from core.models.architecture.architecture import Layer

#: ``plain``: four operations in fp32, as transformers writes them. ``fused``: the worker's function, which keeps the
#: input, and one number for each normalization.
NormForm = Literal["plain", "fused"]


def norm_form(layer: Layer, how: Arithmetic, *, trained: bool) -> NormForm:
    """Implementation of the norms of a layer, and of the final norm after the last layer.

    Args:
        layer: The layer.
        how: Dtypes and kernels.
        trained: Whether the norms' own weights are trained, which the fused function does not support.
    """
    return "fused" if how.fused_layers and not layer.offset_norm and not trained else "plain"


def norm_kept(form: NormForm, how: Arithmetic, width: int, heads: int = 1) -> float:
    """Bytes kept per token, without a trained weight.

    Args:
        form: Implementation.
        how: Dtypes and kernels.
        width: Features.
        heads: Number of normalizations per token, each over its share of the features.
    """
    return (how.bytes if form == "fused" else FP32) * width + FP32 * heads


def norm_backward(form: NormForm, how: Arithmetic, width: int) -> float:
    """Transient bytes per token of the backward pass, in addition to kept tensors."""
    # The scaled gradient, the normalized input and their product in fp32; the gradients of output and residual.
    return (3 * FP32 + 2 * how.bytes if form == "fused" else 5 * FP32) * width


def norm_step(form: NormForm, how: Arithmetic, width: int, held: float, *, heads: int = 1, trained: bool) -> Step:
    """A normalization step.

    Args:
        form: Implementation.
        how: Dtypes and kernels.
        width: Features.
        held: Bytes per token alive meanwhile.
        heads: As for :func:`norm_kept`.
        trained: Whether the weight is trained; the normalized input is kept then.
    """
    a = how.bytes
    kept = norm_kept(form, how, width, heads)
    if form == "fused":
        beside = (2 * FP32 + (a if a != FP32 else 0)) * width
    else:
        beside = (FP32 + 2 * a) * width
        kept += a * width if trained else 0
    return Step("norm", kept=kept, beside=held + beside, beside_backward=norm_backward(form, how, width))

"""Normalization memory, kept and transient, for each implementation."""

from __future__ import annotations

from typing import Literal

from core.memory.steps import FP32, Arithmetic, Step
from core.models.architecture.architecture import Layer

#: ``layer``: torch's own function, with mean and bias. ``rms``: four operations in fp32, as transformers writes them.
#: ``fused rms``: the worker's function, which keeps the input and one number for each normalization.
NormForm = Literal["layer", "rms", "fused rms"]


def norm_form(layer: Layer, how: Arithmetic, *, trained: bool) -> NormForm:
    """Implementation of the norms of a layer, and of the final norm after the last layer.

    Args:
        layer: The layer.
        how: Dtypes and kernels.
        trained: Whether the norms' own weights are trained, which the fused function does not support.
    """
    if layer.norm == "layer":
        return "layer"
    return "fused rms" if how.fused_layers and not layer.offset_norm and not trained else "rms"


def keeps_input(form: NormForm, how: Arithmetic) -> bool:
    """Whether the kept tensor is the input itself, which other steps may share."""
    return form == "fused rms" or (form == "layer" and not _is_cast(how))


def norm_kept(form: NormForm, how: Arithmetic, width: int, heads: int = 1) -> float:
    """Bytes kept per token, without a trained weight.

    Args:
        form: Implementation.
        how: Dtypes and kernels.
        width: Features.
        heads: Number of normalizations per token, each over its share of the features.
    """
    a = how.bytes
    if form == "layer":
        # Autocast runs it in fp32 on CUDA.
        return FP32 * width + 2 * FP32 if _is_cast(how) else a * width + 2 * a
    return (a if form == "fused rms" else FP32) * width + FP32 * heads


def norm_backward(form: NormForm, how: Arithmetic, width: int) -> float:
    """Transient bytes per token of the backward pass, in addition to kept tensors."""
    if form == "layer":
        return 3 * how.bytes * width
    # The scaled gradient, the normalized input and their product in fp32; the gradients of output and residual.
    return (3 * FP32 + 2 * how.bytes if form == "fused rms" else 5 * FP32) * width


def norm_step(
    form: NormForm, how: Arithmetic, width: int, held: float, *, heads: int = 1, again: bool = False, trained: bool
) -> Step:
    """A normalization step.

    Args:
        form: Implementation.
        how: Dtypes and kernels.
        width: Features.
        held: Bytes per token alive meanwhile.
        heads: As for :func:`norm_kept`.
        again: Whether the input is kept already.
        trained: Whether the weight is trained; the normalized input is kept then.
    """
    a = how.bytes
    kept = norm_kept(form, how, width, heads)
    if form == "layer":
        # On CUDA its output is fp32, which each product casts again.
        beside = (FP32 + a) * width if _is_cast(how) else a * width
    elif form == "fused rms":
        beside = (2 * FP32 + (a if a != FP32 else 0)) * width
    else:
        beside = (FP32 + 2 * a) * width
        kept += a * width if trained else 0
    if again and keeps_input(form, how):
        kept -= a * width
    return Step("norm", kept=kept, beside=held + beside, beside_backward=norm_backward(form, how, width))


def _is_cast(how: Arithmetic) -> bool:
    return how.cuda and how.autocast

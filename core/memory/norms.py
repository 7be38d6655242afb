"""What a normalization keeps for backward and takes while it runs, in each of the ways in which it is computed."""

from __future__ import annotations

from typing import Literal

from core.memory.steps import FP32, Arithmetic, Step
from core.models.architecture.architecture import Layer

#: ``layer``: torch's own function, with mean and bias. ``rms``: four operations in fp32, as transformers writes them.
#: ``fused rms``: the worker's function, which keeps the input and one number for each normalization.
NormForm = Literal["layer", "rms", "fused rms"]


def norm_form(layer: Layer, how: Arithmetic, *, trained: bool) -> NormForm:
    """How the norms of a layer, and the one behind the last layer, are computed.

    Args:
        layer: The layer.
        how: How it is computed.
        trained: Whether the norms' own weights are trained, which the fused function does not know of.
    """
    if layer.norm == "layer":
        return "layer"
    return "fused rms" if how.fused_layers and not layer.offset_norm and not trained else "rms"


def keeps_input(form: NormForm, how: Arithmetic) -> bool:
    """Whether what is kept is the input itself, which others may hold too."""
    return form == "fused rms" or (form == "layer" and not _is_cast(how))


def norm_kept(form: NormForm, how: Arithmetic, width: int, heads: int = 1) -> float:
    """Bytes kept for each token, a weight that is trained left out.

    Args:
        form: How it is computed.
        how: How numbers are held.
        width: Features.
        heads: How many normalizations of a token there are, each over its share of the features.
    """
    a = how.bytes
    if form == "layer":
        # Autocast runs it in fp32 on CUDA.
        return FP32 * width + 2 * FP32 if _is_cast(how) else a * width + 2 * a
    return (a if form == "fused rms" else FP32) * width + FP32 * heads


def norm_backward(form: NormForm, how: Arithmetic, width: int) -> float:
    """Bytes a token that are alive while the gradient is made, besides what is kept."""
    if form == "layer":
        return 3 * how.bytes * width
    # The gradient weighed, the normalized input and their product in fp32; the gradients of output and residual.
    return (3 * FP32 + 2 * how.bytes if form == "fused rms" else 5 * FP32) * width


def norm_step(
    form: NormForm, how: Arithmetic, width: int, held: float, *, heads: int = 1, again: bool = False, trained: bool
) -> Step:
    """A normalization as a step.

    Args:
        form: How it is computed.
        how: How numbers are held.
        width: Features.
        held: Bytes a token of what else is alive meanwhile.
        heads: As for :func:`norm_kept`.
        again: Whether the input has been kept already.
        trained: Whether the weight is trained; what it is multiplied with is kept then.
    """
    a = how.bytes
    kept = norm_kept(form, how, width, heads)
    if form == "layer":
        # In fp32 on CUDA it gives fp32, which each product casts again.
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

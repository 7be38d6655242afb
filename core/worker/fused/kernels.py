"""Triton's kernels, or torch's operations in their place: chosen on the device by a trial, once for each dtype and
shape in a process."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator

import torch

from core.worker.fused.cases import HEAD, cross_entropy_trial, experts_trial, gated_trial, norm_trial, rotary_trial
from core.worker.fused.cross_entropy import CrossEntropy
from core.worker.fused.experts import GroupedProducts
from core.worker.fused.gated import ACTIVATIONS, Activation, Gating
from core.worker.fused.rms_norm import RmsNormFunction
from core.worker.fused.rotary import Rotation, rotate
from core.worker.fused.trial import Trial

#: Lowest compute capability that Triton compiles for, and the lowest with arithmetic in bf16.
OLDEST, OLDEST_BF16 = (7, 5), (8, 0)

Function = type[torch.autograd.Function]


def can_use(capability: tuple[int, int] | None, dtype: torch.dtype) -> bool:
    """True if a trial of Triton's kernels is worthwhile.

    Args:
        capability: Compute capability of the device; None for one without.
        dtype: The dtype of the arithmetic.
    """
    if capability is None or dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return False
    return capability >= (OLDEST_BF16 if dtype == torch.bfloat16 else OLDEST)


def norm_function(device: torch.device, dtype: torch.dtype, width: int, *, learned: bool = False) -> Function:
    """The autograd function of RMS norms.

    Args:
        device: The device.
        dtype: The dtype of input and weight.
        width: Features.
        learned: Whether the weight is trained.
    """
    kernel = _usable(device, dtype) and _norm_trial(device, dtype, width, learned).passed
    return _norm_kernel() if kernel else RmsNormFunction


def gating_of(activation: Activation, device: torch.device, dtype: torch.dtype) -> Gating:
    """The way to compute gated products.

    Args:
        activation: The activation function.
        device: The device.
        dtype: The dtype of the projections.
    """
    kernel = _usable(device, dtype) and _gated_trial(activation, device, dtype).passed
    return _gated_kernel(activation) if kernel else Gating(activation)


def rotation_of(device: torch.device, dtype: torch.dtype) -> Rotation:
    """The way to compute rotary embeddings.

    Args:
        device: The device.
        dtype: The dtype of the features; the angles' is the same or fp32.
    """
    kernel = _usable(device, dtype) and all(trial.passed for trial in _rotary_trials(device, dtype))
    return _rotary_kernel() if kernel else rotate


def grouped_products(device: torch.device, dtype: torch.dtype) -> GroupedProducts:
    """The way to compute grouped products of experts; the kernel is one of 16-bit dtypes, on cards that have bf16:
    Triton uses the tensor cores of no older one.

    Args:
        device: The device.
        dtype: The dtype of rows and matrices.
    """
    kernel = _has_grouped(device, dtype) and _experts_trial(device, dtype).passed
    return _experts_kernel() if kernel else GroupedProducts()


def _has_grouped(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype != torch.float32 and _usable(device, torch.bfloat16)


def cross_entropy_of(device: torch.device, dtype: torch.dtype) -> CrossEntropy:
    """The way to compute the cross-entropy.

    Args:
        device: The device.
        dtype: The dtype of the logits.
    """
    kernel = _usable(device, dtype) and _cross_entropy_trial(device, dtype).passed
    return _cross_entropy_kernel() if kernel else CrossEntropy()


def kernel_trials(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    """Trials of every kernel; none where they are not used.

    Args:
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    if not _usable(device, dtype):
        return
    for learned in (False, True):
        yield _norm_trial(device, dtype, HEAD, learned)
    for activation in ACTIVATIONS:
        yield _gated_trial(activation, device, dtype)
    yield from _rotary_trials(device, dtype)
    if _has_grouped(device, dtype):
        yield _experts_trial(device, dtype)
    yield _cross_entropy_trial(device, dtype)


@functools.cache
def _usable(device: torch.device, dtype: torch.dtype) -> bool:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return can_use(capability, dtype) and _is_installed()


def _is_installed() -> bool:
    try:
        importlib.import_module("triton")
    except Exception:  # a damaged installation can raise anything
        return False
    return True


@functools.cache
def _norm_trial(device: torch.device, dtype: torch.dtype, width: int, learned: bool) -> Trial:
    name = "trained RMS norm, Triton" if learned else "RMS norm, Triton"
    return norm_trial(name, _norm_kernel(), device, dtype, width, learned=learned)


@functools.cache
def _gated_trial(activation: Activation, device: torch.device, dtype: torch.dtype) -> Trial:
    return gated_trial(f"gated product ({activation.name}), Triton", _gated_kernel(activation), device, dtype)


@functools.cache
def _rotary_trials(device: torch.device, dtype: torch.dtype) -> tuple[Trial, ...]:
    name, kernel = "rotary embedding, Triton", _rotary_kernel()
    return (
        rotary_trial(name, kernel, device, dtype),
        rotary_trial(
            f"{name}, of a part by angles in fp32", kernel, device, dtype, turned=HEAD // 2, angles=torch.float32
        ),
    )


@functools.cache
def _experts_trial(device: torch.device, dtype: torch.dtype) -> Trial:
    return experts_trial("grouped products of experts, Triton", _experts_kernel(), device, dtype)


@functools.cache
def _cross_entropy_trial(device: torch.device, dtype: torch.dtype) -> Trial:
    return cross_entropy_trial("cross-entropy, Triton", _cross_entropy_kernel(), device, dtype)


# Imported only here, where the package triton has been found.


def _norm_kernel() -> Function:
    from core.worker.fused.triton.rms_norm import RmsNormKernel

    return RmsNormKernel


@functools.cache
def _gated_kernel(activation: Activation) -> Gating:
    from core.worker.fused.triton.gated import KernelGating

    return KernelGating(activation)


def _rotary_kernel() -> Rotation:
    from core.worker.fused.triton.rotary import rotate

    return rotate


@functools.cache
def _experts_kernel() -> GroupedProducts:
    from core.worker.fused.triton.experts import KernelProducts

    return KernelProducts()


def _cross_entropy_kernel() -> CrossEntropy:
    from core.worker.fused.triton.cross_entropy import KernelCrossEntropy

    return KernelCrossEntropy()

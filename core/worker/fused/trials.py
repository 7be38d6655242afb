"""Trials of every fast path of this package on a device, for those who ask which of them it computes rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import bitsandbytes as bnb
import torch

from core.worker.fused.attention import TRIAL_WINDOW, capability_of, trial_inputs, try_kernel, try_opaque
from core.worker.fused.attention_kernels import Kernel, has_varlen, kernels_for
from core.worker.fused.cases import HEAD, HEADS, adapter_trial, gated_trial, network_trial, norm_trial, rotary_trial
from core.worker.fused.gated import ACTIVATIONS, Gating
from core.worker.fused.kernels import gating_of, kernel_trials
from core.worker.fused.rms_norm import RmsNormFunction
from core.worker.fused.rotary import rotate
from core.worker.fused.trial import Trial

#: A kind of fast paths: its trials for a device and a dtype.
Source = Callable[[torch.device, torch.dtype], Iterator[Trial]]


def trials(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    """Every fast path of this package that there is for a device, tried one after another.

    Args:
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    for source in SOURCES:
        yield from source(device, dtype)


def _elementwise(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    yield norm_trial("RMS norm", RmsNormFunction, device, dtype)
    yield rotary_trial("rotary embedding", rotate, device, dtype)
    yield rotary_trial("rotary embedding of a part", rotate, device, dtype, turned=HEAD // 2)
    for activation in ACTIVATIONS:
        yield gated_trial(f"gated product ({activation.name})", Gating(activation), device, dtype)


def _linear(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    gating = gating_of(ACTIVATIONS[0], device, dtype)
    for kind, ending in ((bnb.nn.Linear4bit, ", 4 bits"), (torch.nn.Linear, "")):
        yield adapter_trial(f"LoRA{ending}", kind, device, dtype)
        yield network_trial(f"gated feed-forward{ending}", kind, gating, device, dtype)


def _attention(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    for window in (False, True):
        size = TRIAL_WINDOW if window else None
        varlen = has_varlen(grouped=True, window=size, scale=None, head=HEAD)
        for kernel in kernels_for(capability_of(device), dtype, HEAD, HEAD, window=window, varlen=varlen):
            if kernel is not Kernel.MASKED:
                yield try_kernel(kernel, trial_inputs(device, dtype, HEADS, HEADS // 2, HEAD, HEAD), window=window)
    yield try_opaque(device, dtype)


#: The kinds of fast paths.
SOURCES: tuple[Source, ...] = (_elementwise, kernel_trials, _linear, _attention)

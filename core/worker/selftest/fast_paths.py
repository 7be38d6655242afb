"""Check of the fast paths: outputs and gradients against the plain path, in every dtype of the device.

On an AMD card a kernel that fails is no failure: every run tries the kernels itself, and computes without those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import bitsandbytes as bnb
import torch

from core.text import one_line
from core.worker.fused.attention import (
    TRIAL_WINDOW,
    capability_of,
    is_rocm,
    trial_inputs,
    try_kernel,
    try_opaque,
)
from core.worker.fused.attention_kernels import Kernel, kernels_for, varlen_call
from core.worker.fused.cases import HEAD, HEADS, adapter_trial, gated_trial, network_trial, norm_trial, rotary_trial
from core.worker.fused.gated import ACTIVATIONS, Gating
from core.worker.fused.kernels import gating_of, kernel_trials
from core.worker.fused.rms_norm import RmsNormFunction
from core.worker.fused.rotary import rotate
from core.worker.fused.trial import Trial
from core.worker.process.probe import has_bf16
from core.worker.selftest.check import Bench, Outcome


def trials(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    """Trials of all fast paths for a device, one by one.

    Args:
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    yield from _functions(device, dtype)
    yield from _kernels(device, dtype)


def _functions(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    """Paths that every run takes."""
    yield from _elementwise(device, dtype)
    yield from _linear(device, dtype)


def _kernels(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    """Kernels that every run tries before it takes them."""
    yield from kernel_trials(device, dtype)
    yield from _attention(device, dtype)


def _elementwise(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    yield norm_trial("RMS norm", RmsNormFunction, device, dtype, learned=True)
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
        varlen = varlen_call(grouped=True, window=size, scale=None, head=HEAD) is not None
        known = kernels_for(
            capability_of(device), dtype, HEAD, HEAD, window=window, varlen=varlen, rocm=is_rocm(device)
        )
        for kernel in known:
            if kernel is not Kernel.MASKED:
                yield try_kernel(kernel, trial_inputs(device, dtype, HEADS, HEADS // 2, HEAD, HEAD), window=window)
    yield try_opaque(device, dtype)


_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
#: Failed trials listed in the message.
_TOLD = 3


def check(bench: Bench) -> Outcome:
    """Try every fast path on the device of a run."""
    from core.worker.model.device import choose_device

    device = choose_device(bench.sizes.device)
    made: list[Trial] = []
    unused: list[Trial] = []
    for dtype in dtypes(device):
        for source in (_functions, _kernels):
            for trial in source(device, dtype):
                is_spare = source is _kernels and is_rocm(device) and not trial.passed
                (unused if is_spare else made).append(trial)
                bench.tell(f"{trial.name} in {_NAMES[dtype]}", None, None)
    return judge(made, unused)


def dtypes(device: torch.device) -> list[torch.dtype]:
    """The dtypes of a run on a device."""
    if device.type == "cpu":
        return [torch.float32, torch.bfloat16]
    return [torch.float32, torch.float16, *([torch.bfloat16] if has_bf16(device) else [])]


def judge(made: Sequence[Trial], unused: Sequence[Trial] = ()) -> Outcome:
    """The outcome of trials.

    Args:
        made: The trials that have to pass, and those that have.
        unused: Failed trials of paths that runs do without.
    """
    if not made:
        return Outcome("not applicable", "No fast path is used on this device.")
    failed = [trial for trial in made if not trial.passed]
    if failed:
        told = [f"{trial.name} in {_NAMES[trial.dtype]}: {one_line(str(trial.reason), 120)}" for trial in failed]
        rest = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        what = "trial differs" if len(failed) == 1 else "trials differ"
        return Outcome(
            "fail", f"{len(failed)} of {len(made)} {what} from the plain path: {'; '.join(told[:_TOLD])}{rest}."
        )
    worst = max(made, key=lambda trial: trial.worst / trial.allowed)
    names = list(dict.fromkeys(trial.name for trial in made))
    used = list(dict.fromkeys(_NAMES[trial.dtype] for trial in made))
    left_out = dict.fromkeys(f"{trial.name} in {_NAMES[trial.dtype]}" for trial in unused)
    without = f" Runs do without {', '.join(left_out)}." if unused else ""
    return Outcome(
        "pass",
        f"{len(made)} trials, outputs and gradients, in {', '.join(used)}: {'; '.join(names)}. The worst is "
        f"{worst.name} in {_NAMES[worst.dtype]}, {worst.worst:.1g} off where {worst.allowed:.1g} is allowed.{without}",
    )

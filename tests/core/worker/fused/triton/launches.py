"""Launches of every Triton kernel for :mod:`compiled`, each through the kernel's wrapper, as a run calls it.

A new kernel needs a function that calls its wrapper on small tensors, and a line in :data:`LAUNCHES`. Tensors are on
the CPU and hold nothing: dtypes, shapes, strides and alignment decide what is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from core.worker.fused.cross_entropy import Scaling
from core.worker.fused.experts import Offsets
from core.worker.fused.gated import ACTIVATIONS, Activation
from core.worker.fused.mode import apply
from core.worker.fused.triton.cross_entropy import KernelCrossEntropy
from core.worker.fused.triton.experts import KernelProducts
from core.worker.fused.triton.gated import KernelGating
from core.worker.fused.triton.rms_norm import RmsNormKernel
from core.worker.fused.triton.rotary import rotate
from core.worker.optim import adamw_kernels, rounding_kernels

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
#: Hidden sizes of models, the size of a head among them.
WIDTHS = (64, 80, 96, 128, 256, 576, 896, 1536, 2048, 2560, 2880, 3072, 3584, 4096, 5120, 8192, 16384)


@dataclass(frozen=True)
class Launch:
    """Calls of a wrapper."""

    name: str
    call: Callable[[int, torch.dtype], object]
    """The wrapper's call, of a width and a dtype, forward and backward."""
    widths: tuple[int, ...]
    """Features of the rows; what else they count is said in the name."""
    short: tuple[int, ...] = ()
    """Widths that are in ``make test``, in bf16."""
    dtypes: tuple[torch.dtype, ...] = (BF16, FP16, FP32)


def norm(width: int, dtype: torch.dtype, *, learned: bool = False) -> None:
    x, weight = torch.empty(2, 16, width, dtype=dtype, requires_grad=True), torch.empty(width, dtype=dtype)
    out = apply(RmsNormKernel, x, weight.requires_grad_(learned), 1e-5)
    torch.autograd.grad(out, [x, weight] if learned else x, torch.empty_like(out))


def gated(activation: Activation, width: int, dtype: torch.dtype, *, joined: bool = False) -> None:
    """Gate and up apart, or as halves of the rows of a joined projection."""
    gating, outer = KernelGating(activation), torch.empty(16, width, dtype=dtype)
    gate, up = (
        torch.empty(16, 2 * width, dtype=dtype).chunk(2, -1) if joined else torch.empty_like(outer).expand(2, -1, -1)
    )
    gating.product(gate, up)
    gating.gradients(outer, gate, up)
    gating.gradients_and_product(outer, gate, up)


def rotary(heads: int, width: int, dtype: torch.dtype, *, angles: torch.dtype | None = None, part: int = 1) -> None:
    """Heads of a width, of which one part in ``part`` turns; angles in the dtype of the heads if not in their own."""
    x = torch.empty(2, 48, heads, width, dtype=dtype).transpose(1, 2)
    cos, sin = torch.empty(2, 1, 1, 48, width // part, dtype=angles or dtype)
    for sign in (1.0, -1.0):
        rotate(x, cos, sin, sign)


def experts(inner: int, width: int, dtype: torch.dtype) -> None:
    """Products of two experts, whose matrices have ``inner`` rows, and the gradient of such matrices."""
    ends = [100, 200]
    products, offsets = KernelProducts(), Offsets(ends, torch.tensor(ends, dtype=torch.int32))
    wide, narrow = torch.empty(200, width, dtype=dtype), torch.empty(200, inner, dtype=dtype)
    matrices = torch.empty(2, inner, width, dtype=dtype)
    products.multiply(wide, matrices.transpose(1, 2), offsets, None, narrow)
    products.multiply(narrow, matrices, offsets, None, wide)
    products.multiply_between(narrow, wide, offsets)
    products.multiply_between(wide, narrow, offsets)


def cross_entropy(vocabulary: int, dtype: torch.dtype, *, softcap: float | None = None) -> None:
    """Losses alone, and with the gradient in place of the logits."""
    kernel, scaling = KernelCrossEntropy(), Scaling(1.0, softcap)
    logits, targets = torch.empty(16, vocabulary, dtype=dtype), torch.empty(16, dtype=torch.int64)
    kernel.losses(logits, targets, scaling)
    kernel.differentiate(logits, targets, scaling)


def update(guarded: bool, weights: torch.dtype, count: int, dtype: torch.dtype) -> None:
    wanted = torch.ones((), dtype=torch.int32) if guarded else None
    sizes = torch.empty(count, dtype=weights), torch.empty(count, dtype=dtype)
    rounding_kernels.add_update(*sizes, keep=0.999, seed=123456789, wanted=wanted)


def adamw(guarded: bool, weights: torch.dtype, count: int, dtype: torch.dtype) -> None:
    """Update of weights with 8-bit states, by a gradient of a dtype."""
    codes, scales = torch.empty(count, dtype=torch.uint8), torch.empty(count // adamw_kernels.BLOCK)
    state = {
        **dict.fromkeys(("state1", "state2"), codes),
        **dict.fromkeys(("absmax1", "absmax2"), scales),
        **{name: torch.empty(256) for name in ("qmap1", "qmap2")},
        "step": 3,
    }
    adamw_kernels.step(
        torch.empty(count, dtype=weights),
        torch.empty(count, dtype=dtype),
        state,
        {"betas": (0.9, 0.999), "lr": 1e-4, "eps": 1e-8},
        keep=0.999,
        scale=0.5,
        seed=123456789,
        wanted=torch.ones((), dtype=torch.int32) if guarded else None,
    )


def clear(count: int, dtype: torch.dtype) -> None:
    rounding_kernels.clear_unless(torch.ones((), dtype=torch.int32), torch.empty(count, dtype=dtype))


LAUNCHES = [
    # A row of 32,768 features is the longest that the kernel takes.
    Launch("norm", norm, (*WIDTHS, 32768), short=(576, 4096)),
    Launch("norm, trained", functools.partial(norm, learned=True), WIDTHS, short=(4096,)),
    *(
        Launch(f"gated {activation.name}", functools.partial(gated, activation), (1000, 14336), short=(14336,))
        for activation in ACTIVATIONS
    ),
    Launch("gated, joined", functools.partial(gated, ACTIVATIONS[0], joined=True), (14336,)),
    *(
        Launch(f"rotary of {heads} heads", functools.partial(rotary, heads), (64, 80, 96, 128, 256), short=short)
        for heads, short in ((1, ()), (3, ()), (8, (128,)), (9, ()), (24, (80,)), (32, (128,)), (128, ()))
    ),
    Launch("rotary, angles in fp32", functools.partial(rotary, 32, angles=FP32), (80, 128), dtypes=(BF16, FP16)),
    Launch("rotary, half of a head", functools.partial(rotary, 32, angles=FP32, part=2), (128,)),
    *(
        Launch(
            f"experts of {inner}", functools.partial(experts, inner), (64, 80, 2048, 2880), short, dtypes=(BF16, FP16)
        )
        for inner, short in ((8, ()), (16, (2048,)), (64, ()), (96, ()), (1536, (2048,)))
    ),
    Launch("cross-entropy", cross_entropy, (49152, 128257), short=(49152,)),
    Launch("cross-entropy, capped", functools.partial(cross_entropy, softcap=30.0), (262144,)),
    *(
        Launch(
            f"update of {weights} {'guarded' * guarded}",
            functools.partial(update, guarded, weights),
            (65536,),
            short=(65536,) if guarded and weights == BF16 else (),
            dtypes=(BF16, FP32),
        )
        for guarded in (False, True)
        for weights in (BF16, FP32)
    ),
    *(
        Launch(
            f"AdamW with 8-bit states of {weights} {'guarded' * guarded}",
            functools.partial(adamw, guarded, weights),
            (65536,),
            short=(65536,) if guarded and weights == BF16 else (),
            dtypes=(BF16, FP32),
        )
        for guarded in (False, True)
        for weights in (BF16, FP32)
    ),
    Launch("clearing of an update", clear, (65536,), short=(65536,), dtypes=(BF16, FP32)),
]

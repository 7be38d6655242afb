"""Trials of every fast path of this package on a device, for those who ask which of them it computes rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import bitsandbytes as bnb
import torch

from core.worker.fused import rotary
from core.worker.fused.attention import capability_of, trial_inputs, try_kernel, try_opaque
from core.worker.fused.attention_kernels import Kernel, kernels_for
from core.worker.fused.frozen_weight import FrozenWeight
from core.worker.fused.lora import LoraLinear
from core.worker.fused.rms_norm import RmsNormFunction
from core.worker.fused.trial import Trial, compare

#: Rows, tokens of each, heads, and features: none of them a power of two.
ROWS, LENGTH, HEADS, HEAD, HIDDEN, WIDTH = 2, 37, 6, 80, 192, 320
RANK = 8


def trials(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    """Every fast path of this package that there is for a device, tried one after another.

    Args:
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    for source in SOURCES:
        yield from source(device, dtype)


def draw(*shape: int, device: torch.device, dtype: torch.dtype, learned: bool = True, seed: int = 0) -> torch.Tensor:
    """An input of a trial: normal values, the same on every device.

    Args:
        shape: Its shape.
        device: Its device.
        dtype: Its dtype.
        learned: Whether its gradient is compared.
        seed: Of its values.
    """
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(device=device, dtype=dtype).requires_grad_(learned)


# Norms.


def _norms(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    inputs = (
        draw(ROWS, LENGTH, HIDDEN, device=device, dtype=dtype),
        draw(HIDDEN, device=device, dtype=dtype, learned=False, seed=1),
    )
    yield compare("RMS norm", lambda x, weight: RmsNormFunction.apply(x, weight, 1e-5), plain_rms_norm, inputs)  # type: ignore[no-untyped-call]


def plain_rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """RMS norm as transformers' Llama writes it.

    Args:
        x: ``(..., hidden)``.
        weight: ``(hidden,)``.
        epsilon: Added to the mean of squares.
    """
    wide = x.float()
    normal: torch.Tensor = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)
    return normal


# Rotary embedding.


def _rotations(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    for name, turned in (("rotary embedding", HEAD), ("rotary embedding of a part", HEAD // 2)):
        # As they come from the projections: heads and tokens transposed.
        q, k = (
            draw(ROWS, LENGTH, heads, HEAD, device=device, dtype=dtype, seed=heads).detach().transpose(1, 2)
            for heads in (HEADS, HEADS // 2)
        )
        angles = draw(1, LENGTH, turned // 2, device=device, dtype=torch.float32, learned=False).repeat(1, 1, 2)
        inputs = (q.requires_grad_(), k.requires_grad_(), angles.cos().to(dtype), angles.sin().to(dtype))
        yield compare(name, rotary.apply_rotary_pos_emb, plain_rotary, inputs)


def plain_rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding as transformers writes it.

    Args:
        q: Queries, ``(batch, heads, length, head)``.
        k: Keys, likewise.
        cos: ``(batch or 1, length, turned)``.
        sin: The same.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = cos.shape[-1]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., : turned // 2], x[..., turned // 2 : turned]
        half = torch.cat([-second, first], dim=-1)
        return torch.cat([x[..., :turned] * cos + half * sin, x[..., turned:]], dim=-1)

    return rotate(q), rotate(k)


# Linear layers with adapters.


def _adapters(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    for name, kind in (("LoRA on 4 bits", bnb.nn.Linear4bit), ("LoRA", torch.nn.Linear)):
        layer = frozen_linear(kind, HIDDEN, WIDTH, device, dtype)

        def fast(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, layer: torch.nn.Module = layer) -> torch.Tensor:
            out: torch.Tensor = LoraLinear.apply(x, None, down, up, 2.0, FrozenWeight(layer), x.dtype)  # type: ignore[no-untyped-call]
            return out

        def plain(
            x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, layer: torch.nn.Module = layer
        ) -> torch.Tensor:
            out: torch.Tensor = layer(x) + (x @ down.T) @ up.T * 2.0
            return out

        inputs = (
            draw(ROWS, LENGTH, HIDDEN, device=device, dtype=dtype),
            draw(RANK, HIDDEN, device=device, dtype=dtype, seed=1),
            draw(WIDTH, RANK, device=device, dtype=dtype, seed=2),
        )
        yield compare(name, fast, plain, inputs)


def frozen_linear(
    kind: type[torch.nn.Module], inputs: int, outputs: int, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """A frozen linear layer without a bias; a 4-bit one is quantized as models are.

    Args:
        kind: ``torch.nn.Linear`` or ``bitsandbytes.nn.Linear4bit``.
        inputs: Features of its input.
        outputs: Features of its output.
        device: Its device.
        dtype: The dtype of its weights, or of its arithmetic.
    """
    weight = draw(outputs, inputs, device=torch.device("cpu"), dtype=dtype, learned=False) * inputs**-0.5
    if kind is torch.nn.Linear:
        dense = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype, device=device).requires_grad_(False)
        dense.weight.copy_(weight)
        return dense
    quantized = bnb.nn.Linear4bit(
        inputs, outputs, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True
    )
    quantized.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    moved: torch.nn.Module = quantized.to(device)
    return moved


# Attention.


def _attention(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    for window in (False, True):
        for kernel in kernels_for(capability_of(device), dtype, HEAD, HEAD, window=window):
            if kernel is not Kernel.MASKED:
                yield try_kernel(kernel, trial_inputs(device, dtype, HEADS, HEADS // 2, HEAD, HEAD), window=window)
    yield try_opaque(device, dtype)


#: The kinds of fast paths, each with its trials for a device and a dtype.
SOURCES: tuple[Callable[[torch.device, torch.dtype], Iterator[Trial]], ...] = (
    _norms,
    _rotations,
    _adapters,
    _attention,
)

"""Cases of trials: for each kind of layer its plain form, as transformers writes it, and inputs of odd shapes."""

from __future__ import annotations

import itertools

import bitsandbytes as bnb
import torch

from core.worker.fused.cross_entropy import CrossEntropy, Scaling
from core.worker.fused.experts import GroupedProducts, Offsets
from core.worker.fused.frozen_weight import FrozenWeight
from core.worker.fused.gated import Activation, GatedLoraLinear, GatedProduct, Gating
from core.worker.fused.lora import AdaptedLayer, add_adapters
from core.worker.fused.mode import apply
from core.worker.fused.rotary import RotaryFunction, Rotation
from core.worker.fused.trial import Trial, compare

#: Rows, tokens of each, heads, and features: none of them a power of two.
ROWS, LENGTH, HEADS, HEAD, HIDDEN, WIDTH = 2, 37, 6, 80, 192, 320
#: Positions of a loss, and logits of each: more than a kernel reads at a time.
POSITIONS, VOCABULARY = 5, 10_007
#: Values of a norm whose weight is trained.
LEARNED_VALUES = 1 << 20
RANK, SCALE = 8, 2.0
#: Rows of each expert of a mixture: none, less than a tile, one row, several tiles.
COUNTS = [0, 37, 1, 0, 150, 64, 5]
EPSILON = 1e-5


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


def norm_trial(
    name: str,
    function: type[torch.autograd.Function],
    device: torch.device,
    dtype: torch.dtype,
    width: int = HIDDEN,
    *,
    learned: bool = False,
) -> Trial:
    """Trial of an RMS norm.

    Args:
        name: The name of the fast path.
        function: Its autograd function, of input, weight and epsilon.
        device: The device.
        dtype: The dtype of the arithmetic.
        width: Features.
        learned: Whether the gradient of the weight is compared too.
    """
    # Where the weight is trained, the kernel's programs have several tiles from a million values on.
    length = LENGTH + (LEARNED_VALUES // (ROWS * width) if learned else 0)
    inputs = (
        draw(ROWS, length, width, device=device, dtype=dtype),
        draw(width, device=device, dtype=dtype, learned=learned, seed=1),
    )
    return compare(name, lambda x, weight: apply(function, x, weight, EPSILON), plain_rms_norm, inputs)


def plain_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """RMS norm.

    Args:
        x: ``(..., hidden)``.
        weight: ``(hidden,)``.
    """
    wide = x.float()
    normal: torch.Tensor = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)).to(x.dtype)
    return normal


# Rotary embedding.


def rotary_trial(
    name: str,
    rotation: Rotation,
    device: torch.device,
    dtype: torch.dtype,
    *,
    head: int = HEAD,
    turned: int = HEAD,
    angles: torch.dtype | None = None,
) -> Trial:
    """Trial of a rotary embedding.

    Args:
        name: The name of the fast path.
        rotation: The fast path.
        device: The device.
        dtype: The dtype of the features.
        head: Features of a head.
        turned: How many of them are rotated.
        angles: The dtype of the angles; that of the features if None.
    """
    # As it comes from a projection: heads and tokens transposed.
    x = draw(ROWS, LENGTH, HEADS, head, device=device, dtype=dtype, learned=False).transpose(1, 2)
    angle = draw(1, 1, LENGTH, turned // 2, device=device, dtype=torch.float32, learned=False).repeat(1, 1, 1, 2)
    inputs = (x.requires_grad_(), angle.cos().to(angles or dtype), angle.sin().to(angles or dtype))
    return compare(name, lambda x, cos, sin: apply(RotaryFunction, x, cos, sin, rotation), plain_rotary, inputs)


def plain_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of the first features.

    Args:
        x: ``(batch, heads, length, head)``.
        cos: ``(batch or 1, 1, length, turned)``.
        sin: The same.
    """
    turned = cos.shape[-1]
    first, second = x[..., : turned // 2], x[..., turned // 2 : turned]
    half = torch.cat([-second, first], dim=-1)
    rotated = (x[..., :turned] * cos + half * sin).to(x.dtype)
    return torch.cat([rotated, x[..., turned:]], dim=-1)


# Gated products.


def gated_trial(name: str, gating: Gating, device: torch.device, dtype: torch.dtype) -> Trial:
    """Trial of a gated product, of two projections and of a joined one: the gradients of all of them.

    Args:
        name: The name of the fast path.
        gating: The fast path.
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    activation = gating.activation

    def fast(gate: torch.Tensor, up: torch.Tensor, both: torch.Tensor) -> tuple[torch.Tensor, ...]:
        again = gating.gradients_and_product(up.detach().clone(), gate.detach(), up.detach())
        return apply(GatedProduct, gate, up, gating), apply(GatedProduct, both, None, gating), *again

    def plain(gate: torch.Tensor, up: torch.Tensor, both: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = plain_gated(activation, gate, up), plain_gated(activation, *both.chunk(2, dim=-1))
        own = [tensor.detach().requires_grad_() for tensor in (gate, up)]
        product = plain_gated(activation, own[0], own[1])
        gradients = torch.autograd.grad(product, own, up.detach())
        return *outputs, *gradients, product.detach()

    inputs = (
        draw(ROWS, LENGTH, WIDTH, device=device, dtype=dtype),
        draw(ROWS, LENGTH, WIDTH, device=device, dtype=dtype, seed=1),
        draw(ROWS, LENGTH, 2 * WIDTH, device=device, dtype=dtype, seed=2),
    )
    return compare(name, fast, plain, inputs)


def plain_gated(activation: Activation, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Gated product.

    Args:
        activation: The activation function.
        gate: ``(..., width)``.
        up: The same.
    """
    return activation.forward(gate) * up


# Experts of a mixture.


def experts_trial(name: str, products: GroupedProducts, device: torch.device, dtype: torch.dtype) -> Trial:
    """Trial of grouped products: of the matrices of all experts and block by block, and the gradients of matrices.

    Args:
        name: The name of the fast path.
        products: The fast path.
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    ends = list(itertools.accumulate(COUNTS))
    offsets = Offsets(ends, torch.tensor(ends, dtype=torch.int32, device=device))

    def fast(rows: torch.Tensor, matrices: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Torch's own kernel, where there is one, is not on trial.
        wide, narrow = rows.new_empty(len(rows), WIDTH), rows.new_empty(len(rows), RANK)
        for block in offsets.blocks(2):
            products.multiply(rows, matrices[block.index].transpose(1, 2), offsets, block, wide)
        products.multiply(rows, down.transpose(1, 2), offsets, None, narrow)
        back = torch.empty_like(rows)
        products.multiply(wide, matrices, offsets, None, back)
        return wide, back, narrow, products.multiply_between(narrow, rows, offsets)

    def plain(rows: torch.Tensor, matrices: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = torch.split(rows, COUNTS)
        wide = torch.cat([part @ matrix.T for part, matrix in zip(parts, matrices, strict=True)])
        back = torch.cat([part @ matrix for part, matrix in zip(torch.split(wide, COUNTS), matrices, strict=True)])
        narrow = torch.cat([part @ matrix.T for part, matrix in zip(parts, down, strict=True)])
        sums = [one.T @ other for one, other in zip(torch.split(narrow, COUNTS), parts, strict=True)]
        return wide, back, narrow, torch.stack(sums)

    shapes = ((sum(COUNTS), HIDDEN), (len(COUNTS), WIDTH, HIDDEN), (len(COUNTS), RANK, HIDDEN))
    inputs = [draw(*shape, device=device, dtype=dtype, learned=False, seed=seed) for seed, shape in enumerate(shapes)]
    return compare(name, fast, plain, inputs)


# Cross-entropy.


def cross_entropy_trial(
    name: str, way: CrossEntropy, device: torch.device, dtype: torch.dtype, vocabulary: int = VOCABULARY
) -> Trial:
    """Trial of a cross-entropy: losses and gradients, plain, and scaled, capped and multiplied by factors.

    Args:
        name: The name of the fast path.
        way: The fast path.
        device: The device.
        dtype: The dtype of the logits.
        vocabulary: Logits of a position.
    """
    targets = torch.randint(vocabulary, (POSITIONS,), generator=torch.Generator().manual_seed(2)).to(device)
    factors = draw(POSITIONS, device=device, dtype=torch.float32, learned=False, seed=1)

    def passes(way: CrossEntropy, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: list[torch.Tensor] = []
        for scaling, outer in ((Scaling(), None), (Scaling(0.5, 2.0), factors)):
            gradient = logits.clone()
            losses = way.differentiate(gradient, targets, scaling, outer)
            found += [way.losses(logits, targets, scaling), losses, gradient]
        return tuple(found)

    logits = 4 * draw(POSITIONS, vocabulary, device=device, dtype=dtype, learned=False)
    return compare(name, lambda x: passes(way, x), lambda x: passes(CrossEntropy(), x), (logits,))


# Linear layers.


def adapter_trial(name: str, kind: type[torch.nn.Module], device: torch.device, dtype: torch.dtype) -> Trial:
    """Trial of a frozen linear layer with an adapter.

    Args:
        name: The name of the fast path.
        kind: As for :func:`frozen_linear`.
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    layer = frozen_linear(kind, device, dtype)

    def fast(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return add_adapters(x, None, [AdaptedLayer(FrozenWeight(layer), down, up, SCALE)], dtype)[0]

    def plain(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = layer(x) + (x @ down.T) @ up.T * SCALE
        return out

    return compare(
        name, fast, plain, (draw(ROWS, LENGTH, HIDDEN, device=device, dtype=dtype), *_adapter(device, dtype))
    )


def network_trial(
    name: str, kind: type[torch.nn.Module], gating: Gating, device: torch.device, dtype: torch.dtype
) -> Trial:
    """Trial of a gated product with a frozen down projection and its adapter.

    Args:
        name: The name of the fast path.
        kind: As for :func:`frozen_linear`.
        gating: The way to compute the product.
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    layer = frozen_linear(kind, device, dtype)

    def fast(gate: torch.Tensor, other: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return apply(GatedLoraLinear, gate, other, down, up, SCALE, 0.0, FrozenWeight(layer), dtype, gating)

    def plain(gate: torch.Tensor, other: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        x = gating.activation.forward(gate) * other
        out: torch.Tensor = layer(x) + (x @ down.T) @ up.T * SCALE
        return out

    wide = (draw(ROWS, LENGTH, HIDDEN, device=device, dtype=dtype, seed=seed) for seed in (3, 4))
    return compare(name, fast, plain, (*wide, *_adapter(device, dtype)))


def _adapter(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        draw(RANK, HIDDEN, device=device, dtype=dtype, seed=1),
        draw(WIDTH, RANK, device=device, dtype=dtype, seed=2),
    )


def frozen_linear(kind: type[torch.nn.Module], device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A frozen linear layer without a bias; a 4-bit one is quantized as models are.

    Args:
        kind: ``torch.nn.Linear`` or ``bitsandbytes.nn.Linear4bit``.
        device: Its device.
        dtype: The dtype of its weights, or of its arithmetic.
    """
    weight = draw(WIDTH, HIDDEN, device=torch.device("cpu"), dtype=dtype, learned=False) * HIDDEN**-0.5
    if kind is torch.nn.Linear:
        dense = torch.nn.Linear(HIDDEN, WIDTH, bias=False, dtype=dtype, device=device).requires_grad_(False)
        dense.weight.copy_(weight)
        return dense
    how = {"quant_type": "nf4", "compress_statistics": True}
    quantized = bnb.nn.Linear4bit(HIDDEN, WIDTH, bias=False, compute_dtype=dtype, **how)
    quantized.weight = bnb.nn.Params4bit(weight, requires_grad=False, **how)
    moved: torch.nn.Module = quantized.to(device)
    return moved

"""Kernels under Triton's interpreter, which runs the same code on the CPU; on a GPU a trial decides.

Collected only by the process of :mod:`test_kernels`."""

from __future__ import annotations

import pytest
import torch

from core.worker.fused.cases import (
    EPSILON,
    cross_entropy_trial,
    experts_trial,
    gated_trial,
    norm_trial,
    plain_gated,
    plain_rms_norm,
    rotary_trial,
)
from core.worker.fused.cross_entropy import Scaling
from core.worker.fused.experts import GroupedProducts, Offsets, grouped_product, multiply_between
from core.worker.fused.gated import ACTIVATIONS, Activation, Gating
from core.worker.fused.mode import apply
from core.worker.fused.rotary import RotaryFunction
from core.worker.fused.trial import compare
from core.worker.fused.triton import rms_norm
from core.worker.fused.triton.cross_entropy import KernelCrossEntropy
from core.worker.fused.triton.experts import KernelProducts
from core.worker.fused.triton.gated import KernelGating
from core.worker.fused.triton.rms_norm import RmsNormKernel
from core.worker.fused.triton.rotary import rotate
from core.worker.optim import adamw, adamw_kernels, rounding_kernels
from core.worker.optim.rounding import COUNT, find_fault
from tests.core.worker.optim.test_adamw import maker
from tests.short_list import long_but

CPU = torch.device("cpu")
#: The interpreter cuts values off to bf16 where a device rounds them, so that each may be a bit further off.
FP32, FP16, BF16 = (torch.float32, 1e-6), (torch.float16, 2**-10), (torch.bfloat16, 2**-6)
DTYPES = long_but([FP32, BF16], [FP32, FP16, BF16])


@pytest.mark.parametrize("width", long_but([3, 65], [3, 65, 128, 1000]))
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("dtype", "allowed"), DTYPES, ids=str)
def test_norm(dtype: torch.dtype, allowed: float, learned: bool, width: int) -> None:
    trial = norm_trial("norm", RmsNormKernel, CPU, dtype, width, learned=learned)
    assert trial.reason is None
    assert trial.worst <= allowed


@pytest.mark.parametrize(
    "limit", [{"PROGRAMS": 3}, {"MOST_LEARNED": 64}], ids=["rows of several tiles", "features too many for a program"]
)
def test_the_gradient_of_a_norms_weight_is_that_of_fp64(limit: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(rms_norm, name, value)
    generator = torch.Generator().manual_seed(0)
    x, outer = (torch.randn(300, 65, generator=generator) for _ in range(2))
    given = (x.requires_grad_(), torch.randn(65, generator=generator).requires_grad_())
    found = torch.autograd.grad(apply(RmsNormKernel, *given, EPSILON), given, outer)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    out = torch.nn.functional.rms_norm(exact[0], (65,), exact[1], EPSILON)
    for ours, true in zip(found, torch.autograd.grad(out, exact, outer.double()), strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-5)


def test_norm_of_other_layouts() -> None:
    x, weight = torch.randn(2, 5, 48), torch.randn(48)
    for strided in (x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([x, x], dim=-1)[..., :48]):
        inputs = (strided.requires_grad_(), weight)
        assert compare("norm", lambda *given: apply(RmsNormKernel, *given, 1e-5), plain_rms_norm, inputs).passed


def test_norm_keeps_its_input_and_a_number_for_each_row() -> None:
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        apply(RmsNormKernel, torch.randn(2, 5, 48, requires_grad=True), torch.ones(48), 1e-5)
    assert sorted(kept) == [(2, 5, 48), (10,), (48,)]


def test_norm_of_too_long_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="40000"):
        apply(RmsNormKernel, torch.randn(1, 40000), torch.ones(40000), 1e-5)


@pytest.mark.parametrize(
    ("activation", "dtype", "allowed"),
    long_but(
        [*((activation, *FP32) for activation in ACTIVATIONS), (ACTIVATIONS[0], *BF16)],
        [(activation, *dtype) for activation in ACTIVATIONS for dtype in (FP32, FP16, BF16)],
    ),
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_gated(activation: Activation, dtype: torch.dtype, allowed: float) -> None:
    trial = gated_trial("gated", KernelGating(activation), CPU, dtype)
    assert trial.reason is None
    assert trial.worst <= allowed


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_gated_of_large_values_and_other_layouts(activation: Activation) -> None:
    gating: Gating = KernelGating(activation)
    gate = torch.linspace(-200, 200, 2 * 1100).reshape(1, 1100, 2).transpose(1, 2)
    up = torch.ones(1, 2, 1100)
    torch.testing.assert_close(gating.product(gate, up), plain_gated(activation, gate, up))
    for made, plain in zip(gating.gradients(up, gate, up), Gating(activation).gradients(up, gate, up), strict=True):
        torch.testing.assert_close(made, plain)


@pytest.mark.parametrize(("head", "turned"), long_but([(10, 6)], [(80, 80), (10, 6), (128, 128), (2, 2)]))
@pytest.mark.parametrize("angles", [None, torch.float32], ids=str)
@pytest.mark.parametrize(("dtype", "allowed"), DTYPES, ids=str)
def test_rotary(dtype: torch.dtype, allowed: float, angles: torch.dtype | None, head: int, turned: int) -> None:
    trial = rotary_trial("rotary", rotate, CPU, dtype, head=head, turned=turned, angles=angles)
    assert trial.reason is None
    # Torch rounds the parts of a sum, the kernel the sum.
    assert trial.worst <= 2 * allowed


def test_rotary_leaves_the_layout_as_it_is() -> None:
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)
    out = apply(RotaryFunction, x, torch.ones(1, 1, 5, 8), torch.zeros(1, 1, 5, 8), rotate)
    assert torch.equal(out, x)
    assert out.stride() == x.stride()


def test_rotary_has_angles_for_each_row() -> None:
    angle = torch.randn(2, 1, 5, 4).repeat(1, 1, 1, 2)
    x = torch.randn(2, 40, 5, 8)
    out = apply(RotaryFunction, x, angle.cos(), angle.sin(), rotate)
    half = torch.cat([-x[..., 4:], x[..., :4]], dim=-1)
    torch.testing.assert_close(out, x * angle.cos() + half * angle.sin())


# Products in bf16 have no values in the interpreter, which multiplies the bits as integers.
@pytest.mark.parametrize(("dtype", "allowed"), long_but([FP32], [FP32, FP16]), ids=str)
def test_products_of_experts(dtype: torch.dtype, allowed: float) -> None:
    trial = experts_trial("experts", KernelProducts(), CPU, dtype)
    assert trial.reason is None
    assert trial.worst <= allowed


@pytest.mark.parametrize("products", [KernelProducts(), GroupedProducts()], ids=["kernel", "padded"])
def test_products_of_experts_are_rounded_once(products: GroupedProducts) -> None:
    """Rows that are not adjacent, matrices in any order of strides, sizes that no tile divides, blocks with gaps."""
    counts = [0, 3, 70, 0, 1, 0]
    ends = torch.tensor(counts).cumsum(0)
    offsets = Offsets(ends.tolist(), ends.int())
    rows = torch.randn(74, 44).half()[:, ::2]
    matrices = torch.randn(22, 6, 37).half().transpose(0, 1)
    found = grouped_product(rows, offsets, lambda block: matrices[block.index], 2, 37, products, transpose=False)
    wanted = torch.cat(
        [part.double() @ one.double() for part, one in zip(torch.split(rows, counts), matrices, strict=True)]
    )
    torch.testing.assert_close(found.double(), wanted, rtol=2**-11, atol=1e-4)
    between = multiply_between(rows, rows, offsets, products)
    sums = torch.stack([part.double().T @ part.double() for part in torch.split(rows, counts)])
    torch.testing.assert_close(between.double(), sums, rtol=2**-11, atol=1e-4)


@pytest.mark.parametrize("vocabulary", long_but([10_007], [97, 8192, 10_007]))
@pytest.mark.parametrize(("dtype", "allowed"), DTYPES, ids=str)
def test_cross_entropy(dtype: torch.dtype, allowed: float, vocabulary: int) -> None:
    trial = cross_entropy_trial("cross-entropy", KernelCrossEntropy(), CPU, dtype, vocabulary)
    assert trial.reason is None
    # Torch rounds the gradient of each step of scaling, the kernel the last.
    assert trial.worst <= 2 * allowed


def test_cross_entropy_of_hard_rows() -> None:
    """Large logits, logits of minus infinity, a target that is nearly certain, one that is not a number."""
    logits = torch.zeros(4, 8200)
    logits[0] = torch.linspace(-1e4, 1e4, 8200)
    logits[1, 8000:] = -float("inf")
    logits[2, 5] = 30.0
    logits[3, 17] = float("nan")
    targets = torch.tensor([8199, 3, 5, 3])
    wide = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    (gradient,) = torch.autograd.grad(wanted.sum(), wide)
    losses = KernelCrossEntropy().differentiate(logits, targets, Scaling())
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-5, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(logits.double(), gradient, rtol=1e-5, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("count", long_but([1 << 14], [1 << 14, COUNT]))
def test_rounding(count: int) -> None:
    """A million roundings have the right mean to a thousandth, and exact values stay."""
    assert find_fault(rounding_kernels, CPU, count) == ""


@pytest.mark.parametrize("kind", long_but(["adamw_8bit"], ["adamw_8bit", "paged_adamw_8bit"]))
def test_the_step_of_adamw_in_8_bits(kind: str) -> None:
    """States and update are those of bitsandbytes."""
    assert adamw.find_fault(adamw_kernels.step, maker(kind), CPU, 4096 + 907) == ""


def test_states_become_the_nearest_codes() -> None:
    """On both sides of every boundary between two codes, in blocks whose first value is the largest."""
    parameter = torch.nn.Parameter(torch.zeros(4096))
    optimizer = maker("adamw_8bit")([parameter])
    state = adamw.make_states(optimizer, parameter, parameter.data)
    for moment, root, negative in (("1", 1.0, True), ("2", 0.5, False)):
        code = state[f"qmap{moment}"].double()
        bounds = (code[1:] + code[:-1]) / 2
        near = torch.cat([code, bounds * (1 - 1e-5), bounds * (1 + 1e-5)]).clamp(-1.0 if negative else 0.0, 1.0)
        wanted = torch.zeros(4096, dtype=torch.float64)
        wanted.view(16, 256)[:, 0] = 1.0
        places = torch.tensor([at for at in range(4096) if at % 256][: len(near)])
        wanted[places] = near
        state["step"] = 1
        for name in ("state1", "state2", "absmax1", "absmax2"):
            state[name].fill_({"state1": 127}.get(name, 0))
        adamw_kernels.step(
            torch.zeros(4096), wanted.pow(root).float(), state, optimizer.param_groups[0], keep=1.0, scale=1.0, seed=0
        )
        assert torch.equal(state[f"state{moment}"].long(), torch.bucketize(wanted, bounds))

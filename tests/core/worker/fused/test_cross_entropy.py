"""Cross-entropy by torch's own operations; its kernel is compared with it in ``triton``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from core.memory.batching import slice_positions
from core.worker.fused.cross_entropy import CrossEntropy, Scaling
from tests.cases import cases

#: Of which a slice has few positions.
VOCABULARY = 100_003


@cases(
    ("scaling", "dtype"),
    [(Scaling(), torch.bfloat16), (Scaling(0.0625), torch.float32), (Scaling(0.5, 3.0), torch.float32)],
)
def test_losses_and_gradients_are_those_of_fp64(scaling: Scaling, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    positions = 2 * slice_positions(VOCABULARY, "cpu") + 1
    logits = (4 * torch.randn(positions, VOCABULARY, generator=generator)).to(dtype)
    targets = torch.randint(VOCABULARY, (positions,), generator=generator)
    factors = torch.rand(positions, generator=generator)
    wide = logits.double().requires_grad_()
    wanted = F.cross_entropy(scaling(wide), targets, reduction="none")
    (gradient,) = torch.autograd.grad(wanted, wide, factors.double())
    way = CrossEntropy()
    few = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(way.losses(logits, targets, scaling).double(), wanted, atol=few, rtol=few)
    losses = way.differentiate(logits, targets, scaling, factors)
    torch.testing.assert_close(losses.double(), wanted, atol=few, rtol=few)
    torch.testing.assert_close(logits.double(), gradient, atol=few * float(gradient.abs().max()), rtol=few)


def test_the_gradient_is_that_of_the_sum_without_factors() -> None:
    logits, targets = torch.randn(3, 50), torch.tensor([0, 7, 49])
    wanted = logits.softmax(dim=-1) - F.one_hot(targets, 50)
    CrossEntropy().differentiate(logits, targets, Scaling())
    torch.testing.assert_close(logits, wanted)


@pytest.mark.parametrize("positions", [0, 1])
def test_few_positions_have_a_loss_each(positions: int) -> None:
    logits, targets = torch.zeros(positions, 8), torch.zeros(positions, dtype=torch.int64)
    assert CrossEntropy().differentiate(logits, targets, Scaling()).shape == (positions,)

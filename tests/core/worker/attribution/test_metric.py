"""Adam's metric from the states of each optimizer, against the second moment of its definition."""

from __future__ import annotations

import torch

from core.config.schema import TrainSection
from core.worker.attribution.metric import metric_of
from core.worker.optim.optim import make_optimizer
from core.worker.optim.paged import load_states
from tests.cases import cases

STEPS = 6


@cases(
    ("optimizer", "tolerance"),
    [("adamw", 1e-5), ("adamw_8bit", 0.1), ("paged_adamw_8bit", 0.1), ("adafactor", 0.2), ("lion_8bit", 0.0)],
)
def test_the_metric_is_that_of_the_second_moment(optimizer: str, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # As many numbers as bitsandbytes keeps in 8 bits, with scales that differ by row and column.
    scales = torch.rand(64, 1, generator=generator).exp() * torch.rand(1, 96, generator=generator).mul(4).exp() * 1e-3
    parameter = torch.nn.Parameter(torch.zeros(64, 96))
    train = TrainSection.model_validate({"optimizer": optimizer, "learning_rate": 1e-3})
    made, again = (make_optimizer([parameter], train) for _ in range(2))
    moment = torch.zeros_like(parameter)
    for _ in range(STEPS):
        # Of one sign, or the few steps would leave moments that are not yet near their means.
        parameter.grad = torch.randn(64, 96, generator=generator).abs().add(1) * scales
        moment = 0.999 * moment + 0.001 * parameter.grad**2
        made.step()
    load_states(again, made.state_dict())
    found = metric_of(again)[parameter]
    assert found.dtype == torch.float32
    wanted = (moment / (1 - 0.999**STEPS)).sqrt().add(1e-8).rsqrt()
    if optimizer == "lion_8bit":
        wanted = torch.ones_like(wanted)
    ratio = (found / wanted).log().abs().detach()
    assert float(ratio.quantile(0.9)) <= tolerance
    assert float(ratio.max()) <= max(10 * tolerance, 0.0)


@cases("optimizer", ["adamw", "adamw_8bit"])
def test_numbers_without_gradients_do_not_outweigh_the_others(optimizer: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(64, 96))
    made = make_optimizer([parameter], TrainSection.model_validate({"optimizer": optimizer}))
    gradient = torch.full((64, 96), 1e-2)
    gradient[:, ::2] = 0
    parameter.grad = gradient
    made.step()
    found = metric_of(made)[parameter]
    assert torch.isfinite(found).all()
    assert float(found[:, ::2].max()) < 1e3 * float(found[:, 1::2].min())

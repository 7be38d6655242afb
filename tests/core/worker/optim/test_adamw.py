"""The trial of the kernel that updates 8-bit states, and where the kernel fits; the kernel itself runs interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from core.worker.optim.adamw import choose_step, find_fault, fits
from core.worker.optim.optim import make_optimizer
from tests.cases import cases
from tests.core.worker.optim.plain_kernels import PlainKernels, plain_step
from tests.core.worker.optim.test_retryable_step import options

CPU = torch.device("cpu")
COUNT = 5003


def maker(kind: str) -> Callable[[list[torch.nn.Parameter]], Any]:
    return lambda parameters: make_optimizer(parameters, options(kind), weight_decay=0.0)


@cases("kind", ["adamw_8bit", "paged_adamw_8bit"])
def test_the_operator_of_bitsandbytes_passes(kind: str) -> None:
    assert find_fault(plain_step, maker(kind), CPU, COUNT) == ""


def changed(**given: Any) -> Callable[..., None]:
    """A step that ignores some of its options."""
    return lambda *of, **options: plain_step(*of, **{**options, **given})


def before(change: Callable[[Any], Any]) -> Callable[..., None]:
    """A step with other rates."""
    return lambda weights, gradient, state, group, **options: plain_step(
        weights, gradient, state, {**group, **change(group)}, **options
    )


def after(change: Callable[[Any], None]) -> Callable[..., None]:
    """A step that spoils the states."""

    def step(weights: torch.Tensor, gradient: torch.Tensor, state: Any, group: Any, **options: Any) -> None:
        plain_step(weights, gradient, state, group, **options)
        change(state)

    return step


def nearest(weights: torch.Tensor, gradient: torch.Tensor, state: Any, group: Any, **options: Any) -> None:
    exact = weights.float()
    plain_step(exact, gradient, state, group, **options)
    weights.copy_(exact)


def far(weights: torch.Tensor, gradient: torch.Tensor, state: Any, group: Any, **options: Any) -> None:
    exact = weights.float()
    plain_step(exact, gradient, state, group, **options)
    PlainKernels().add_update(weights, 40 * (exact - weights.float()), keep=1.0, seed=options["seed"])


@cases(
    ("step", "fault"),
    [
        (changed(keep=1.0), "another update"),
        (changed(scale=1.0), "other states"),
        (before(lambda group: {"lr": 1.1 * group["lr"]}), "another update"),
        (before(lambda _: {"betas": (0.9, 0.99)}), "other states"),
        (after(lambda state: state["state1"].add_(2)), "other states"),
        (after(lambda state: state["state2"].clamp_(max=254).add_(1)), "other states"),
        (after(lambda state: state["absmax2"].mul_(1.01)), "other states"),
        (nearest, "roundings"),
        (far, "neighbors"),
        (changed(seed=7), "two seeds"),
        (changed(wanted=None), "unwanted"),
    ],
)
def test_wrong_results_are_detected(step: Any, fault: str) -> None:
    assert fault in find_fault(step, maker("adamw_8bit"), CPU, COUNT)


@cases(
    ("kind", "size", "fitting"),
    [
        ("adamw_8bit", 4096, True),
        ("paged_adamw_8bit", 4096, True),
        ("adamw_8bit", 4095, False),
        ("lion_8bit", 4096, False),
        ("adamw", 4096, False),
        ("adafactor", 4096, False),
    ],
)
def test_the_kernel_is_for_adamw_with_states_in_8_bits(kind: str, size: int, fitting: bool) -> None:
    parameter = torch.nn.Parameter(torch.zeros(size))
    assert fits(maker(kind)([parameter]), parameter) is fitting


def test_a_tensor_whose_elements_are_not_in_order_keeps_the_optimizers_step() -> None:
    parameter = torch.nn.Parameter(torch.zeros(64, 128).T)
    assert not fits(maker("adamw_8bit")([parameter]), parameter)


def test_a_cpu_has_no_kernel_and_a_failing_card_falls_back_and_reports_it() -> None:
    """There is no card here, so that its first tensor fails."""
    told: list[tuple[str, ...]] = []
    for device, kind in ((CPU, "adamw_8bit"), (torch.device("cuda"), "adamw")):
        assert choose_step(device, maker(kind), lambda *notice: told.append(notice)) is None
    assert not told
    assert choose_step(torch.device("cuda"), maker("adamw_8bit"), lambda *notice: told.append(notice)) is None
    ((code, message, hint),) = told
    assert code == "update"
    assert "the kernel that does it in one is not used, as it fails with " in message
    assert hint

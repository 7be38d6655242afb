"""Updates of the model's own weights: after the window or inside backward, with each optimizer."""

from __future__ import annotations

import copy
import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from core.worker.optim.update import MASTER, WeightUpdate
from tests.cases import cases
from tests.core.worker.optim.plain_kernels import PlainKernels, plain_step
from tests.core.worker.optim.test_retryable_step import Dispatched, Failing, weight_update

OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit")


class Net(torch.nn.Module):
    """Two layers, large enough for 8-bit states, and a tied use of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(128, 64)
        self.second = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(torch.tanh(self.first(x)))
        return torch.nn.functional.linear(hidden, self.first.weight.t())


class Setup:
    """A net, its update and a way to do steps."""

    def __init__(self, optimizer: Any, *, in_backward: bool, dtype: torch.dtype = torch.float32, **options: Any):
        torch.manual_seed(0)
        self.net = Net().to(dtype)
        self.dtype = dtype
        named = dict(self.net.named_parameters())
        self.update = weight_update(named, optimizer, in_backward=in_backward, **{"weight_decay": 0.1, **options})

    def backward(self, seed: int) -> None:
        data = torch.randn(16, 128, generator=torch.Generator().manual_seed(seed)).to(self.dtype)
        (self.net(data).float() - 1).square().mean().backward()

    def step(self, seed: int, lr: float = 1e-2) -> float:
        self.update.begin(lr)
        self.backward(seed)
        norm = self.update.clip()
        self.update.step()
        return norm

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.net.parameters()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@cases("in_backward", [False, True])
def test_adamw_is_that_of_torch(in_backward: bool) -> None:
    setup = Setup("adamw", in_backward=in_backward)
    theirs = copy.deepcopy(setup.net)
    matrices = [p for p in theirs.parameters() if p.dim() > 1]
    rest = [p for p in theirs.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-2
    )
    for step in range(5):
        data = torch.randn(16, 128, generator=torch.Generator().manual_seed(step))
        (theirs(data) - 1).square().mean().backward()
        square_sum = sum(float(p.grad.square().sum()) for p in theirs.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        assert setup.step(step) == pytest.approx(math.sqrt(square_sum), rel=1e-5)
        for ours, their in zip(setup.net.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(ours, their, rtol=1e-5, atol=1e-6)


def test_no_two_gradients_exist_at_once_inside_backward() -> None:
    setup = Setup("adamw", in_backward=True)
    seen: list[int] = []

    def count(_: torch.Tensor) -> None:
        seen.append(sum(parameter.grad is not None for parameter in setup.net.parameters()))

    for parameter in setup.net.parameters():
        hooked: Any = parameter
        hooked.register_post_accumulate_grad_hook(count)  # runs after the update's hook
    setup.step(0)
    assert seen == [0, 0, 0, 0]


def test_bf16_weights_learn_from_updates_that_rounding_would_lose() -> None:
    setup = Setup("adamw", in_backward=True, dtype=torch.bfloat16, weight_decay=0.0)
    before = setup.weights()
    for step in range(20):
        setup.step(step, lr=2e-5)  # far below 1/256 of most weights
    moved = [
        float((now.float() - then.float()).abs().mean()) for now, then in zip(setup.weights(), before, strict=True)
    ]
    assert all(distance > 1e-5 for distance in moved)


@cases("optimizer", OPTIMIZERS)
@cases("in_backward", [False, True])
def test_states_go_on_bit_for_bit(optimizer: str, in_backward: bool) -> None:
    def run(setup: Setup, first: int, last: int) -> None:
        for step in range(first, last):
            torch.manual_seed(step)
            setup.step(step)

    whole, cut = (Setup(optimizer, in_backward=in_backward, dtype=torch.bfloat16) for _ in range(2))
    run(whole, 0, 6)
    run(cut, 0, 3)
    state = copy.deepcopy(cut.update.state_dict())
    resumed = Setup(optimizer, in_backward=in_backward, dtype=torch.bfloat16)
    resumed.net.load_state_dict(cut.net.state_dict())
    resumed.update.load_state_dict(state)
    run(resumed, 3, 6)
    assert equal(whole.weights(), resumed.weights())


def test_copies_of_weights_that_deepspeed_has_made_are_not_kept() -> None:
    setup = Setup("adamw", in_backward=False, dtype=torch.bfloat16)
    setup.step(0)
    state = copy.deepcopy(setup.update.state_dict())
    for name, parameter in setup.net.named_parameters():
        state[name]["state"][0][MASTER] = parameter.detach().float()
    setup.update.load_state_dict(state)
    for kept in setup.update.state_dict().values():
        assert set(kept["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


@cases("optimizer", OPTIMIZERS)
@cases("in_backward", [False, True])
def test_a_rehearsal_leaves_no_trace(optimizer: str, in_backward: bool) -> None:
    rehearsed, calm = (Setup(optimizer, in_backward=in_backward) for _ in range(2))
    before = rehearsed.weights()
    with rehearsed.update.rehearsal():
        rehearsed.backward(9)
        for parameter in rehearsed.net.parameters():
            parameter.grad = None
    assert equal(before, rehearsed.weights())
    assert not rehearsed.update.partial
    for setup in (rehearsed, calm):
        setup.step(0)
        setup.step(1)
    with rehearsed.update.rehearsal():  # states that are real by now stay as they are
        rehearsed.backward(9)
        for parameter in rehearsed.net.parameters():
            parameter.grad = None
    for setup in (rehearsed, calm):
        setup.step(2)
    assert equal(rehearsed.weights(), calm.weights())


def test_gradients_are_clipped_after_the_window() -> None:
    torch.manual_seed(0)
    net = Net()
    update = WeightUpdate(
        dict(net.named_parameters()),
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        states_in_fp32=True,
        weight_decay=0.0,
        max_grad_norm=0.5,
        in_backward=False,
    )
    before = [parameter.detach().clone() for parameter in net.parameters()]
    update.begin(1.0)
    (net(torch.randn(16, 128)) - 1).square().sum().backward()
    assert update.clip() > 0.5
    update.step()
    moved = [now - then for now, then in zip(net.parameters(), before, strict=True)]
    assert float(torch.cat([change.flatten() for change in moved]).norm()) == pytest.approx(0.5, rel=1e-4)


@cases("in_backward", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(in_backward: bool) -> None:
    setup = Setup("adamw", in_backward=in_backward)
    before = setup.weights()
    setup.update.begin(1e-2)
    (setup.net(torch.ones(16, 128)).square().sum() * math.nan).backward()
    assert not math.isfinite(setup.update.clip())
    setup.update.drop()
    assert equal(before, setup.weights())
    assert all(parameter.grad is None for parameter in setup.net.parameters())


def waits_for_device(name: str, args: Any) -> bool:
    """True for a computed value that the host reads; seeds are the host's own."""
    return name == "aten._local_scalar_dense.default" and bool(args[0].is_floating_point())


@cases("optimizer", OPTIMIZERS)
@cases("in_backward", [False, True])
def test_kernels_do_the_same_and_the_host_waits_for_no_tensor(optimizer: str, in_backward: bool) -> None:
    kernels = PlainKernels()
    plain = Setup(optimizer, in_backward=in_backward)
    fast = Setup(optimizer, in_backward=in_backward, kernels=kernels)
    for step in range(3):
        norms = [plain.step(step), fast.step(step)]
        assert norms[0] == norms[1]
    assert equal(plain.weights(), fast.weights())
    assert kernels.added == 3 * 4
    if in_backward:
        counts = []
        for setup in (plain, fast):
            setup.update.begin(1e-2)
            with Dispatched(waits_for_device) as reads:
                setup.backward(3)
            counts.append(reads.counts.total())
        assert counts == [4, 0], "one a tensor, and none"


@cases("optimizer", OPTIMIZERS)
@cases("dtype", [torch.float32, torch.bfloat16])
def test_kernels_leave_a_gradient_that_is_not_finite_out(optimizer: str, dtype: torch.dtype) -> None:
    """Of one tensor; the others are updated."""
    setup = Setup(optimizer, in_backward=True, dtype=dtype, kernels=PlainKernels())
    setup.step(0)
    before, states = setup.weights(), copy.deepcopy(setup.update.state_dict())
    setup.update.begin(1e-2)
    spoiled: Any = setup.net.second.weight
    spoiling = spoiled.register_hook(lambda gradient: gradient * math.inf)
    setup.backward(1)
    assert not math.isfinite(setup.update.clip())
    setup.update.drop()
    changed = dict(zip(dict(setup.net.named_parameters()), map(torch.ne, before, setup.weights()), strict=True))
    assert [name for name, where in changed.items() if not where.any()] == ["second.weight"]
    now = setup.update.state_dict()["second.weight"]["state"][0]
    for name, value in states["second.weight"]["state"][0].items():
        if optimizer == "adamw":
            assert torch.equal(now[name], value), "fused AdamW leaves its states as they are"
    assert all(torch.isfinite(parameter).all() for parameter in setup.net.parameters())
    spoiling.remove()
    setup.step(2)
    assert all(torch.isfinite(parameter).all() for parameter in setup.net.parameters())


EIGHT_BITS = cases("optimizer", ["adamw_8bit", "paged_adamw_8bit"])


def states_of(setup: Setup, name: str = "first.weight") -> dict[str, Any]:
    (state,) = setup.update._steppers[name].optimizer.state.values() or [{}]
    return dict(state)


def without_copies(setup: Setup) -> None:
    """Let the optimizers of large tensors refuse to step, as their zero stand-in would have to exist."""
    for stepper in setup.update._steppers.values():
        if stepper.parameter.numel() >= 4096:
            stepper.optimizer.update_step = Mock(side_effect=AssertionError("the kernel does it"))


@EIGHT_BITS
@cases("in_backward", [False, True])
def test_one_kernel_does_the_whole_step(optimizer: str, in_backward: bool) -> None:
    """Of large tensors; small ones have states in fp32. Gradients are clipped after the window."""
    options: dict[str, Any] = {"in_backward": in_backward, "max_grad_norm": 0.1, "kernels": PlainKernels()}
    apart, fused = Setup(optimizer, **options), Setup(optimizer, **options, fused_step=plain_step)
    without_copies(fused)
    for step in range(3):
        torch.manual_seed(step)
        norm = apart.step(step)
        torch.manual_seed(step)
        assert fused.step(step) == norm > 0.1
    assert equal(apart.weights(), fused.weights())
    for name in dict(fused.net.named_parameters()):
        ours, theirs = states_of(fused, name), states_of(apart, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)) for key, value in theirs.items())


@EIGHT_BITS
def test_a_run_goes_on_with_the_kernel_or_without(optimizer: str) -> None:
    setup = Setup(optimizer, in_backward=True, fused_step=plain_step)
    setup.step(0)
    goes_on = [Setup(optimizer, in_backward=True, fused_step=step) for step in (plain_step, None)]
    for other in goes_on:
        other.net.load_state_dict(setup.net.state_dict())
        other.update.load_state_dict(copy.deepcopy(setup.update.state_dict()))
        other.step(1)
    assert equal(goes_on[0].weights(), goes_on[1].weights())


@EIGHT_BITS
def test_the_kernel_leaves_a_gradient_that_is_not_finite_out(optimizer: str) -> None:
    setup = Setup(optimizer, in_backward=True, kernels=PlainKernels(), fused_step=plain_step)
    setup.step(0)
    before, states = setup.weights(), copy.deepcopy(states_of(setup))
    setup.update.begin(1e-2)
    (setup.net(torch.ones(16, 128)).square().sum() * math.nan).backward()
    assert equal(before, setup.weights())
    now = states_of(setup)
    assert all(torch.equal(now[name], states[name]) for name in ("state1", "state2", "absmax1", "absmax2"))


@EIGHT_BITS
def test_a_rehearsal_with_the_kernel_makes_the_states_and_leaves_no_trace(optimizer: str) -> None:
    setup = Setup(optimizer, in_backward=True, fused_step=plain_step)
    without_copies(setup)
    before = setup.weights()
    with setup.update.rehearsal():
        setup.backward(9)
        assert states_of(setup)["state1"].shape == setup.net.first.weight.shape
        for parameter in setup.net.parameters():
            parameter.grad = None
    assert equal(before, setup.weights())
    assert not states_of(setup)


@EIGHT_BITS
def test_states_and_kernel_run_again_after_memory_ran_out_in_either(optimizer: str) -> None:
    failing_step = Failing(plain_step, {1}, after=False)
    calm, failing = (Setup(optimizer, in_backward=False, fused_step=step) for step in (plain_step, failing_step))
    of = failing.update._steppers["first.weight"].optimizer
    real, calls = of.get_state_buffer, iter(range(10))

    def buffer(*given: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*given, **options)

    of.get_state_buffer = buffer
    for setup in (calm, failing):
        torch.manual_seed(0)
        setup.step(0)
    assert next(calls) == 6, "three times two states"
    assert equal(calm.weights(), failing.weights())

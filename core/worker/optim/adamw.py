"""AdamW with 8-bit states in one kernel: where it fits, and its trial against bitsandbytes' own.

The states stay those of bitsandbytes, so a run goes on with either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from bitsandbytes.optim.optimizer import Optimizer2State

from core.worker.optim.optim import forget_state, step_parameter
from core.worker.optim.paged import settle
from core.worker.optim.rounding import SHARE, SPACING, fault_of

#: Elements of the trial: enough for bitsandbytes to page the states, with a last block that is not whole.
COUNT = 100_003
#: Updates that are compared.
STEPS = 3
#: Factors on weights and gradients, and the learning rate, of the trial.
KEEP, SCALE, RATE = 0.9, 0.5, 1e-2
#: Largest difference of a state, as a share of its block's largest value, where codes are more than one apart: near
#: zero bitsandbytes is inexact on a CPU.
NEAR_ZERO = 5e-5
#: Largest difference of the mean state, as a share of its mean size.
BIAS = 0.01


class Step(Protocol):
    """Update of a tensor, as :func:`core.worker.optim.adamw_kernels.step`."""

    def __call__(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        state: Mapping[str, Any],
        group: Mapping[str, Any],
        *,
        keep: float,
        scale: float,
        seed: int,
        wanted: torch.Tensor | None = None,
    ) -> None:
        """Update the states, then the weights by ``keep * weights + update``, rounded stochastically to bf16, unless a
        flag on the device is 0."""


def fits(optimizer: Any, parameter: torch.Tensor) -> bool:
    """True if an optimizer updates a parameter by AdamW with 8-bit states, which the kernel can do.

    Args:
        optimizer: Any optimizer, without weight decay.
        parameter: The parameter.
    """
    if not isinstance(optimizer, Optimizer2State) or optimizer.optimizer_name != "adam":
        return False
    return parameter.numel() >= optimizer.args.min_8bit_size and parameter.is_contiguous()


def make_states(optimizer: Any, parameter: torch.nn.Parameter, like: torch.Tensor) -> dict[str, Any]:
    """The states of a parameter on its device, created if they do not exist.

    Args:
        optimizer: An optimizer of bitsandbytes.
        parameter: Its parameter, which may be empty.
        like: A tensor with the shape of the states.
    """
    if not optimizer.state.get(parameter):
        own, parameter.data = parameter.data, like
        try:
            optimizer.init_state(optimizer.param_groups[0], parameter, 0, 0)
        finally:
            parameter.data = own
    optimizer.prefetch_state(parameter)
    state: dict[str, Any] = optimizer.state[parameter]
    return state


def choose_step(
    device: torch.device,
    make_optimizer: Callable[[list[torch.nn.Parameter]], Any],
    notice: Callable[[str, str, str], None],
) -> Step | None:
    """The kernel, if the device is a GPU, the optimizer is AdamW with 8-bit states, and the trial passes.

    Args:
        device: Device of the run.
        make_optimizer: Creates the optimizer of the run over parameters, without weight decay.
        notice: Receives the reason of a failed trial: ``notice(code, message, hint)``.
    """
    if device.type != "cuda" or not fits(make_optimizer([torch.nn.Parameter(torch.empty(COUNT))]), torch.empty(COUNT)):
        return None
    found: list[Step] = []

    def trial() -> str:
        from core.worker.optim.adamw_kernels import step

        found.append(step)
        return find_fault(step, make_optimizer, device)

    if fault := fault_of(trial):
        message = f"Weights are updated in several passes: the kernel that does it in one is not used, as {fault}."
        notice("update", message, "It computes as well, and takes some more time in each step.")
        return None
    return found[0]


def find_fault(
    step: Step,
    make_optimizer: Callable[[list[torch.nn.Parameter]], Any],
    device: torch.device,
    count: int = COUNT,
) -> str:
    """Reason why the kernel cannot be used; empty if it computes the same as the optimizer.

    Args:
        step: The kernel.
        make_optimizer: Creates the optimizer over parameters, without weight decay.
        device: Device to try it on.
        count: Elements of the tensors.
    """
    ours, theirs = (_Tried(make_optimizer, device, count) for _ in range(2))
    try:
        return _differing(step, ours, theirs) or _wrongly_rounded(step, ours)
    finally:
        ours.end()
        theirs.end()


class _Tried:
    """An optimizer of a single tensor."""

    def __init__(
        self, make_optimizer: Callable[[list[torch.nn.Parameter]], Any], device: torch.device, count: int
    ) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(count, device=device))
        self.optimizer = make_optimizer([self.parameter])
        self.group = self.optimizer.param_groups[0]
        self.group["lr"] = RATE

    @property
    def state(self) -> dict[str, Any]:
        return make_states(self.optimizer, self.parameter, self.parameter.data)

    def kept(self) -> dict[str, torch.Tensor]:
        """Copies of the states on the host."""
        settle(self.optimizer)
        return {name: value.cpu().clone() for name, value in self.state.items() if isinstance(value, torch.Tensor)}

    def end(self) -> None:
        settle(self.optimizer)
        forget_state(self.optimizer, self.parameter)


def _differing(step: Step, ours: _Tried, theirs: _Tried) -> str:
    """Compare updates in fp32, each from equal states."""
    generator = torch.Generator().manual_seed(0)
    zero = theirs.parameter
    weights = torch.randn(zero.shape, generator=generator).to(zero.device)
    for number in range(STEPS):
        gradient = torch.randn(zero.shape, generator=generator) * torch.randn(zero.shape, generator=generator).exp()
        gradient = gradient.to(zero.device)
        zero.data, zero.grad = torch.zeros_like(weights), gradient * SCALE
        step_parameter(theirs.optimizer, theirs.group, zero)
        expected = weights * KEEP + zero.data
        ours.state["step"] += 1
        step(weights, gradient, ours.state, ours.group, keep=KEEP, scale=SCALE, seed=number)
        if not torch.allclose(weights, expected, rtol=1e-6, atol=1e-3 * RATE):
            return "it makes another update"
        if not _alike(ours.kept(), theirs.kept()):
            return "it leaves other states"
        for name, value in theirs.kept().items():
            ours.state[name].copy_(value)
    return ""


def _alike(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """True if scales agree, and codes up to one."""
    for moment in ("1", "2"):
        scales = ours[f"absmax{moment}"], theirs[f"absmax{moment}"]
        codes = [states[f"state{moment}"].int() for states in (ours, theirs)]
        values = [theirs[f"qmap{moment}"][code] for code in codes]
        apart, difference = (codes[0] - codes[1]).abs(), values[0] - values[1]
        if not torch.allclose(*scales, rtol=1e-4, atol=0.0) or bool(
            ((apart > 1) & (difference.abs() > NEAR_ZERO)).any()
        ):
            return False
        if not abs(float(difference.mean())) <= BIAS * float(values[1].abs().mean()):
            return False
    return True


def _wrongly_rounded(step: Step, ours: _Tried) -> str:
    """Reduce ones in bf16 by a share of the distance to their lower neighbor, which is half of that to the upper."""
    count, device = ours.parameter.numel(), ours.parameter.device
    ours.group["lr"] = SHARE * SPACING / 2
    gradient, rounded = torch.ones(count, dtype=torch.bfloat16, device=device), []
    for seed in (1, 2):
        ours.end()
        ones, state = torch.ones_like(gradient), ours.state
        state["step"] = 1
        step(ones, gradient, state, ours.group, keep=1.0, scale=1.0, seed=seed)
        lowered = (1.0 - ones.float()) / (SPACING / 2)
        if not bool(((lowered == 0) | (lowered == 1)).all()):
            return "a value became neither of its neighbors"
        if not abs(float(lowered.mean()) - SHARE) < count**-0.5:
            return "its roundings have another mean"
        rounded.append(ones)
    if torch.equal(*rounded):
        return "two seeds round alike"
    before, ones = ours.kept(), rounded[0].clone()
    unwanted = torch.zeros((), dtype=torch.int32, device=device)
    step(ones, gradient * torch.inf, ours.state, ours.group, keep=0.5, scale=1.0, seed=3, wanted=unwanted)
    same = all(torch.equal(value, before[name]) for name, value in ours.kept().items())
    return "" if same and torch.equal(ones, rounded[0]) else "an unwanted update is made"

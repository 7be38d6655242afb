"""Steps that run out of memory half-way, against steps that do not: the same bits."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.config.derived import FP32_STATES
from core.config.schema import Config
from core.worker.oom.retry import MemoryShortageError, Retry
from core.worker.optim import update as update_module
from core.worker.optim.optim import is_blockwise, make_optimizer, step_parameter
from core.worker.optim.rounding import add_slices
from core.worker.optim.update import RetryableStep, WeightUpdate
from tests.cases import cases

OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor", "lion_8bit")


def options(optimizer: str) -> Any:
    train = {"optimizer": optimizer, "weight_decay": 0.1, "learning_rate": 1e-2}
    return Config.model_validate({"data": {"train": "x"}, "train": train}).train


def weight_update(
    named: Mapping[str, torch.nn.Parameter], kind: str, *, buffers: Any = None, **given: Any
) -> WeightUpdate:
    """An update of weights; not inside backward, without decay or clipping unless given."""
    train = options(kind)
    return WeightUpdate(
        named,
        lambda of: make_optimizer(of, train, weight_decay=0.0, buffers=buffers),
        states_in_fp32=kind in FP32_STATES,
        **{"weight_decay": 0.0, "max_grad_norm": 0.0, "in_backward": False, **given},
    )


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size)) for size in ((64, 128), (96, 64), (128,))]


def give_gradients(to: list[torch.nn.Parameter], step: int) -> None:
    torch.manual_seed(step)
    for parameter in to:
        parameter.grad = torch.randn_like(parameter)


def states(optimizer: Any) -> list[Any]:
    return [value for state in optimizer.state.values() for value in state.values()]


def assert_equal(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


class Failing:
    """A function that runs out of memory at chosen calls, after having done its work or before."""

    def __init__(self, real: Callable[..., Any], fail_at: set[int], *, after: bool) -> None:
        self.real, self.fail_at, self.after, self.calls = real, fail_at, after, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        fails = self.calls in self.fail_at
        result = self.real(*args, **kwargs) if self.after or not fails else None
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result


def fail_steps(monkeypatch: pytest.MonkeyPatch, optimizer: Any, fail_at: set[int], *, after: bool) -> None:
    """Let the step of a parameter fail: an optimizer's own, or that of bitsandbytes' optimizers."""
    if not is_blockwise(optimizer):
        optimizer.step = Failing(optimizer.step, fail_at, after=after)
    else:
        monkeypatch.setattr(update_module, "step_parameter", Failing(step_parameter, fail_at, after=after))


class Pair:
    """Optimizers over equal parameters: a steady one, and one whose step is done in parts that may fail."""

    def __init__(self, kind: str, group: Callable[[list[torch.nn.Parameter]], Any] = list) -> None:
        self.calm, self.failing = parameters(), parameters()
        self.steady, self.tried = (make_optimizer(group(of), options(kind)) for of in (self.calm, self.failing))

    def assert_stays_equal(
        self,
        steps: int = 3,
        *,
        in_place: bool | None = None,
        during: AbstractContextManager[object] | None = None,
        one_idle_at: int = -1,
    ) -> list[str]:
        """Do steps with both, the ones that may fail within ``during``; returns the notices."""
        told: list[str] = []
        step = RetryableStep(self.tried, Retry(notice=lambda code, *_: told.append(code)), in_place=in_place)
        for number in range(steps):
            for of in (self.calm, self.failing):
                give_gradients(of, number)
                of[1].grad = None if number == one_idle_at else of[1].grad
            self.steady.step()
            with during or nullcontext():
                step()
        assert_equal([*self.failing, *states(self.tried)], [*self.calm, *states(self.steady)])
        return told


@pytest.mark.long
@cases(("kind", "in_place"), [*((kind, False) for kind in OPTIMIZERS[1:]), ("adamw_8bit", True), ("lion_8bit", True)])
@cases("fail_at", [{1}, {2, 3}, {4}, {6, 8}])
def test_a_parameter_whose_step_failed_is_stepped_once(
    kind: str, in_place: bool, fail_at: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without copies (``in_place``), as on a card, a step can only fail before anything changes."""
    pair = Pair(kind)
    fail_steps(monkeypatch, pair.tried, fail_at, after=not in_place)
    assert pair.assert_stays_equal(in_place=in_place or None) == ["memory_again"] * len(fail_at)
    assert len(pair.tried.param_groups[0]["params"]) == 3


@pytest.mark.long
@cases("fail_at", [{1}, {2}, {3, 4}, {6}])
def test_of_fused_adamw_a_group_is_stepped_once(fail_at: set[int]) -> None:
    """The counters have gone up by then; a second group, as LoRA+ has it, does not undo the first."""
    pair = Pair("adamw", lambda of: [{"params": of[:1], "lr_ratio": 1.0}, {"params": of[1:], "lr_ratio": 16.0}])
    failing = Failing(torch._fused_adamw_, fail_at, after=False)
    pair.assert_stays_equal(during=patch.object(torch, "_fused_adamw_", failing))


def test_counters_that_differ_are_put_back_each_to_its_own() -> None:
    """An expert that is not asked has no gradient, and is a step behind from then on."""
    failing = Failing(torch._fused_adamw_, {3}, after=False)
    Pair("adamw").assert_stays_equal(during=patch.object(torch, "_fused_adamw_", failing), one_idle_at=1)
    assert failing.calls == 4


def test_states_that_are_made_in_part_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair("adamw_8bit")
    monkeypatch.setattr(pair.tried, "get_state_buffer", Failing(pair.tried.get_state_buffer, {2, 4}, after=True))
    pair.assert_stays_equal(1, in_place=True)


@cases("kind", OPTIMIZERS[1:])
def test_a_step_that_never_fits_is_a_user_error_and_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = parameters()
    optimizer = make_optimizer(trained, options(kind))
    before = [parameter.detach().clone() for parameter in trained]
    fail_steps(monkeypatch, optimizer, set(range(99)), after=True)
    step = RetryableStep(optimizer, Retry(where=lambda: "step 7"))
    give_gradients(trained, 0)
    with pytest.raises(MemoryShortageError, match="at step 7 in the optimizer's step, 3 times in a row"):
        step()
    assert_equal(list(trained), before)
    assert states(optimizer) == []


class Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that go through torch's dispatcher inside it, by name.

    Args:
        wanted: Given name and arguments, True for the operations to count.
    """

    def __init__(self, wanted: Callable[[str, Any], bool] = lambda _name, _args: True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self._wanted = wanted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += self._wanted(str(func), args)
        return func(*args, **(kwargs or {}))


@cases(("kind", "calls", "clones"), [("adamw", 5, 1), ("adamw_8bit", 80, 0), ("lion_8bit", 80, 0)])
def test_calls_and_copies_of_a_step_of_forty_adapters_on_a_card(kind: str, calls: int, clones: int) -> None:
    trained = [torch.nn.Parameter(torch.ones(64, 64)) for _ in range(40)]
    step = RetryableStep(make_optimizer(trained, options(kind)), Retry(), in_place=True)
    for number in range(2):
        give_gradients(trained, number)
        with Dispatched() as dispatched:
            step()
    assert dispatched.counts.total() == calls
    assert dispatched.counts["aten.clone.default"] == clones


@pytest.mark.long
@cases("in_backward", [False, True])
@cases("kind", ["adamw", "adamw_8bit"])
def test_a_weight_that_is_added_to_in_slices_goes_on_where_memory_ran_out(
    kind: str, in_backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    calm = torch.nn.Linear(128, 64)
    failing = copy.deepcopy(calm)
    monkeypatch.setattr("core.worker.optim.rounding.SLICE", 1000)
    failed: list[int] = []

    def slices(weights: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for count, end in enumerate(add_slices(weights, *args, **kwargs)):
            yield end
            if count == 2 and len(failed) < 2:
                failed.append(end)
                raise torch.OutOfMemoryError("CUDA out of memory.")

    for net in (calm, failing):
        if net is failing:
            monkeypatch.setattr(update_module, "add_slices", slices)
        update = weight_update(dict(net.named_parameters()), kind, weight_decay=0.1, in_backward=in_backward)
        for number in range(3):
            update.begin(1e-2)
            data = torch.randn(16, 128, generator=torch.Generator().manual_seed(number))
            (net(data) - 1).square().mean().backward()
            update.clip()
            update.step()
    assert failed == [3000, 6000]
    assert_equal(list(failing.parameters()), list(calm.parameters()))

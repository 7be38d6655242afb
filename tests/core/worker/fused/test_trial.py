from __future__ import annotations

import math
from collections.abc import Callable

import torch

from core.worker.fused.trial import Way, compare
from core.worker.selftest.fast_paths import trials
from tests.cases import cases

CPU = torch.device("cpu")


def inputs() -> list[torch.Tensor]:
    return [torch.linspace(-2, 2, 12).reshape(3, 4).requires_grad_(), torch.ones(4)]


def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.square() * y


def raises(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("PassManager::run failed\nat line 3")


def test_the_same_passes_and_changes_nothing() -> None:
    given = inputs()
    before = [tensor.detach().clone() for tensor in given]
    state = torch.get_rng_state()

    def fast(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        return x * x * y.mul_(1)

    trial = compare("square", fast, plain, given)
    assert (trial.name, trial.dtype, trial.reason, trial.passed) == ("square", torch.float32, None, True)
    assert trial.worst <= trial.allowed == 1e-5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert given[0].grad is None


@cases(
    ("fast", "reason"),
    [
        (lambda x, y: plain(x, y).detach() + 0 * x, "differs by"),
        (lambda x, y: plain(x, y) + torch.eye(3, 4) * 0.01, "differs by"),
        (lambda x, y: plain(x, y) + math.nan, "differs by"),
        (raises, "RuntimeError: PassManager::run failed"),
        (lambda x, y: plain(x, y).bfloat16(), "ValueError: torch.bfloat16 [3, 4] instead of torch.float32 [3, 4]"),
    ],
    ids=["another gradient", "one value off", "not finite", "raising", "another dtype"],
)
def test_any_difference_fails_with_a_reason(fast: Way, reason: str) -> None:
    state = torch.get_rng_state()
    trial = compare("square", fast, plain, inputs())
    assert not trial.passed
    assert str(trial.reason).startswith(reason)
    assert "\n" not in str(trial.reason)
    assert torch.equal(torch.get_rng_state(), state)


def test_both_draw_the_same_random_numbers() -> None:
    def dropped(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x * y, 0.5)

    assert compare("dropout", dropped, dropped, inputs()).worst == 0


def test_inputs_keep_their_strides() -> None:
    seen: list[tuple[int, ...]] = []

    def way(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.stride())
        return x * 2

    assert compare("double", way, way, [torch.ones(2, 3, 4).transpose(1, 2)]).passed
    assert seen == [(12, 1, 4)] * 2


@cases("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_fast_path_passes_here(dtype: torch.dtype) -> None:
    made = list(trials(CPU, dtype))
    assert [trial.reason for trial in made] == [None] * len(made)
    assert len({trial.name for trial in made}) == len(made)
    assert {trial.dtype for trial in made} == {dtype}


def test_a_trial_is_independent_of_autocast_and_of_gradients_being_off() -> None:
    asked: list[Callable[[], bool]] = [torch.is_grad_enabled, lambda: torch.is_autocast_enabled("cpu")]
    seen: list[bool] = []

    def way(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.extend(ask() for ask in asked)
        return plain(x, y)

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        compare("square", way, plain, inputs())
    assert seen == [True, False]

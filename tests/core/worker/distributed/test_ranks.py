"""Messages between the processes of a run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from core.worker.distributed import strategy as strategies
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.strategy import Strategy, single
from core.worker.process.control import StopRequested
from tests.cases import cases

from .pairs import run_pair


def parameters(*gradients: torch.Tensor | None) -> list[torch.nn.Parameter]:
    """Parameters with these gradients, of three values each."""
    made = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros(3))
        parameter.grad = gradient
        made.append(parameter)
    return made


def test_all_that_they_say_to_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So small that the gradients take several messages.
    monkeypatch.setattr(strategies, "BUCKET", 4)

    def work(ranks: Ranks) -> dict[str, Any]:
        found: dict[str, Any] = {"any": ranks.any([ranks.rank == 1, False])}
        found["told"] = ranks.broadcast({"step": 3, "name": "größer"} if ranks.is_first else None)
        strategy = Strategy(Orders(ranks))
        mine = torch.full((3,), 1.0 + ranks.rank)
        made = parameters(mine, mine.clone() if ranks.is_first else None, None)
        made.append(torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)))
        made[3].grad = mine.to(torch.bfloat16)
        found["sums"] = strategy.reduce(made, [0.25, float(ranks.rank)])
        found["gradients"] = [None if p.grad is None else p.grad.tolist() for p in made]
        found["dtypes"] = [None if p.grad is None else p.grad.dtype for p in made]
        fresh = torch.full((3,), 1.0 + ranks.rank)
        weights = {"a": fresh, "b": fresh.to(torch.bfloat16)}
        strategy.begin(weights)
        found["begin"] = [weight.tolist() for weight in weights.values()]
        # The first one gives orders, with signs of life in between; the other hears them in turn.
        moment = 0.0
        orders = Orders(ranks, timeout=10.0, holds=lambda: True, clock=lambda: moment)
        if ranks.is_first:
            with orders.session():
                orders.look_after()  # too early
                moment = 2.0
                orders.look_after()
                orders.give("step", step=4)
            found["orders"] = orders.others_hold
        else:
            ranks.meet()
            taken = [orders.take(), orders.take()]
            found["orders"] = [(order.name, order.args) for order in taken]
        return found

    first, second = run_pair(tmp_path, work)
    assert first.pop("orders") is True
    assert second.pop("orders") == [("step", {"step": 4}), ("leave", {})]
    assert first == second
    assert first["any"] == [True, False]
    assert first["told"] == {"step": 3, "name": "größer"}
    assert first["sums"] == [0.5, 1.0]
    # A gradient in one process counts; without any it stays absent, since the optimizer would update it.
    assert first["gradients"] == [[3.0] * 3, [1.0] * 3, None, [3.0] * 3]
    assert first["dtypes"] == [torch.float32, torch.float32, None, torch.bfloat16]
    assert first["begin"] == [[1.0] * 3, [1.0] * 3]


def test_a_killed_process_is_noticed_at_once(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        ranks.any([False])
        if not ranks.is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        return ranks.any([False])

    first, second = run_pair(tmp_path, work, timeout=600.0)
    assert first.startswith("RankLostError: ")
    assert second == "gone"


@pytest.mark.long
def test_a_suspended_process_is_noticed_after_the_timeout(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        ranks.any([False])
        if ranks.is_first:
            return ranks.any([False])
        os.kill(os.getpid(), signal.SIGSTOP)
        return None

    first, _ = run_pair(tmp_path, work, timeout=3.0)
    assert first.startswith("RankLostError: ")


def test_a_single_process_sends_nothing() -> None:
    ranks, strategy = Ranks.single(), single()
    assert ranks.is_first
    assert ranks.is_single
    assert ranks.any([True, False]) == [True, False]
    assert ranks.broadcast({"a": 1}) == {"a": 1}
    gradient = torch.ones(3)
    (parameter,) = parameters(gradient)
    assert strategy.reduce([parameter], [2.0]) == [2.0]
    assert parameter.grad is gradient
    assert strategy.share([3, 1, 2], [5] * 4) == [3, 1, 2]
    orders = Orders(ranks)
    with orders.session(), orders.leading():
        orders.give("step")
        orders.look_after()


@cases(("error", "leaves"), [(StopRequested("socket"), True), (UserError("It failed."), False)])
def test_the_others_leave_at_a_stop_and_not_at_a_failure(
    error: Exception, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, given = Orders(Ranks.single()), list[str]()
    monkeypatch.setattr(orders, "give", given.append)
    with pytest.raises(type(error)), orders.session():
        raise error
    assert given == ["leave"] * leaves
    assert orders.ranks.pulse.count is None


class Passes:
    """A model that is shared out, as far as its contexts go."""

    def __init__(self) -> None:
        self.entered = self.left = 0

    @contextlib.contextmanager
    def leading(self, _announce: Callable[[], None]) -> Iterator[None]:
        """A context of passes alone."""
        self.entered += 1
        yield
        self.left += 1


def test_contexts_of_passes_within_each_other_are_one_and_end_with_an_error() -> None:
    passes, orders = Passes(), Orders(Ranks.single())
    with orders.leading(passes.leading):
        with orders.leading(passes.leading):
            pass
        assert (passes.entered, passes.left) == (1, 0)
    assert (passes.entered, passes.left) == (1, 1)
    with pytest.raises(RuntimeError, match="out of memory"), orders.leading():
        raise RuntimeError("out of memory")
    with orders.leading(passes.leading):
        assert passes.entered == 2

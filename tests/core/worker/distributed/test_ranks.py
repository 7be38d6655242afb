"""Messages between the processes of a run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.worker.distributed import strategy as strategies
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.strategy import Strategy, split_rows
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
    # So small that a gradient takes several messages.
    monkeypatch.setattr(strategies, "BUCKET", 2)

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
            found["orders"] = [orders.take(), orders.take()]
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


@pytest.mark.parametrize(
    ("number", "timeout"), [(signal.SIGKILL, 600.0), pytest.param(signal.SIGSTOP, 3.0, marks=pytest.mark.long)]
)
def test_a_killed_process_is_noticed_at_once_and_a_suspended_one_after_the_timeout(
    tmp_path: Path, number: int, timeout: float
) -> None:
    def work(ranks: Ranks) -> Any:
        ranks.any([False])
        if not ranks.is_first:
            os.kill(os.getpid(), number)
        return ranks.any([False])

    first, _ = run_pair(tmp_path, work, timeout=timeout)
    assert first.startswith("RankLostError: ")


@cases(("error", "leaves"), [(StopRequested("socket"), True), (UserError("It failed."), False)])
def test_others_leave_at_a_stop_not_at_a_failure(
    error: Exception, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, given = Orders(Ranks.single()), list[str]()
    monkeypatch.setattr(orders, "give", given.append)
    with pytest.raises(type(error)), orders.session():
        raise error
    assert given == ["leave"] * leaves
    assert orders.ranks.pulse.count is None


def test_contexts_of_passes_within_each_other_are_one_and_end_with_an_error() -> None:
    orders, told = Orders(Ranks.single()), list[str]()

    @contextlib.contextmanager
    def passes(_announce: Callable[[], None]) -> Iterator[None]:
        told.append("in")
        yield
        told.append("out")

    with orders.leading(passes):
        with orders.leading(passes):
            pass
        assert told == ["in"]
    assert told == ["in", "out"]
    with pytest.raises(RuntimeError, match="out of memory"), orders.leading():
        raise RuntimeError("out of memory")
    with orders.leading(passes):
        assert told == ["in", "out", "in"]


_WINDOWS = st.lists(st.integers(1, 4096), min_size=1, max_size=64).flatmap(
    lambda costs: st.tuples(st.just(costs), st.permutations(range(len(costs))))
)


@given(_WINDOWS, st.integers(1, 9))
def test_every_row_is_worked_on_once_and_no_process_waits_long(window: tuple[list[int], list[int]], count: int) -> None:
    costs, rows = window
    shares = split_rows(rows, costs, count)
    assert len(shares) == count
    assert Counter(row for share in shares for row in share) == Counter(rows)
    for share in shares:
        assert share == [row for row in rows if row in set(share)], "a share keeps the order of the window"
    loads = [sum(costs[row] for row in share) for share in shares]
    # Whoever has most got its last row when it had least.
    assert max(loads) <= sum(costs) / count + max(costs) * (1 - 1 / count) + 1e-9

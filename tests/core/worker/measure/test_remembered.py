"""Remembered operations against the mode of the fake tensors, asked each time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.worker.measure.tracker import AllocationTracker, RememberedOperations, Run, run_operation
from tests.cases import cases

Make = Callable[[torch.Tensor], Any]


class Asked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that reach the fake tensor mode."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def numbers(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.complex64)


def made_by(run: Run, mode: FakeTensorMode, make: Make, dtype: torch.dtype = torch.bfloat16) -> tuple[list[Any], int]:
    """The result for a tensor of two rows, and the number of operations in the mode."""
    with mode:
        x = torch.empty(2, 8, 6, dtype=dtype)
        asked = Asked()  # type: ignore[no-untyped-call]
        with asked, AllocationTracker(run) as tracker:
            before = tracker.live
            made = make(x)
            told: list[Any] = [tracker.live - before]
            for one in tree_leaves(made):
                storage = one.untyped_storage()
                shares = storage._cdata == x.untyped_storage()._cdata
                told.append((one.shape, one.stride(), one.storage_offset(), one.dtype, storage.nbytes(), shares))
                told.append((one.is_conj(), one.is_neg(), one.is_inference(), one.requires_grad))
    return told, asked.count


@cases(
    "make",
    [
        lambda x: x + x,
        lambda x: x.float(),
        lambda x: x[:, 1:5],
        lambda x: x.transpose(1, 2),
        lambda x: x.transpose(1, 2).reshape(12, 8),
        lambda x: x.expand(3, 2, 8, 6),
        lambda x: x.split(2, dim=1),
        lambda x: x.max(dim=1),
        lambda x: torch.native_layer_norm(x, (6,), None, None, 1e-5),
        lambda x: torch.cat([x, x[:1]]),
        lambda _x: torch.zeros(3, 5, dtype=torch.int64),
        lambda x: x[1, 2, 3],
        lambda x: x[torch.zeros(5, dtype=torch.int64)],
        lambda x: x.add_(x[0, 0, 0]),
        lambda x: x.transpose(1, 2).mul_(2),
        lambda x: x.clone().copy_(x[:1]),
        lambda x: torch.mul(x, 2, out=torch.empty_like(x)),
    ],
)
def test_what_is_remembered_is_what_the_mode_makes(make: Make) -> None:
    mode = FakeTensorMode()
    remembered = RememberedOperations(mode)
    wanted, _ = made_by(run_operation, mode, make)
    first, asked = made_by(remembered, mode, make)
    again, never = made_by(remembered, mode, make)
    assert first == again == wanted
    assert (asked > 0, never) == (True, 0)
    wide, _ = made_by(remembered, mode, make, torch.float32)
    assert wide == made_by(run_operation, mode, make, torch.float32)[0]


@cases(
    "make",
    [
        lambda x: x.clone().transpose_(1, 2),
        lambda x: torch.mul(x, 2, out=x.new_empty(0)),
        lambda x: x.sum() * 2,
        lambda x: x + torch.tensor([1.0]),
        lambda x: x + torch.tensor(1.0),
        lambda x: torch.rand(x.shape, generator=torch.Generator()),
        # Conjugates and negatives are views, and told from others.
        lambda x: numbers(x).conj(),
        lambda x: numbers(x).conj().imag,
        lambda x: (numbers(x).resolve_conj(), numbers(x).conj().resolve_conj()),
        lambda x: (numbers(x).imag.resolve_neg(), numbers(x).conj().imag.resolve_neg()),
        lambda x: (numbers(x).clone(), numbers(x).conj().clone()),
    ],
    ids=["shapes in place", "resized", "scalars", "constants", "values", "generators", *["complex numbers"] * 5],
)
def test_the_mode_is_asked_where_shapes_do_not_tell(make: Make) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    remembered = RememberedOperations(mode)
    wanted, _ = made_by(run_operation, mode, make)
    for _ in range(2):
        found, asked = made_by(remembered, mode, make)
        assert found == wanted
        assert asked > 0


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As models are loaded with."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cases("inside", [lambda: default_dtype(torch.float64), lambda: default_dtype(torch.bfloat16), torch.inference_mode])
@cases(
    "make",
    [lambda x: x * 2.5, lambda _x: torch.zeros(3, 5), lambda x: x / x, lambda x: (x + 1, x[1:])],
    ids=["product", "zeros", "quotient", "part"],
)
def test_the_default_dtype_and_inference_mode_decide_what_is_made(make: Make, inside: Callable[[], Any]) -> None:
    mode = FakeTensorMode()
    remembered = RememberedOperations(mode)
    made_by(remembered, mode, make, torch.int64)
    with inside():
        wanted, _ = made_by(run_operation, mode, make, torch.int64)
        for _ in range(2):
            assert made_by(remembered, mode, make, torch.int64)[0] == wanted


def test_symbols_and_layouts_are_left_to_the_mode() -> None:
    symbolic = FakeTensorMode(shape_env=ShapeEnv())
    x, mode = symbolic.from_tensor(torch.empty(4, 3)), FakeTensorMode()
    with mode:
        sparse = torch.empty(3, 3, layout=torch.sparse_coo)
    for owner, given in ((symbolic, x), (mode, sparse)):
        remembered = RememberedOperations(owner)
        for _ in range(2):
            made = remembered(torch.ops.aten.clone.default, (given,), {})
            assert (made.shape, made.layout) == (given.shape, given.layout)
    # And tensors of another mode to that.
    other = FakeTensorMode()
    for owner in (mode, other, mode):
        with owner:
            theirs = torch.empty(2, 3)
        assert RememberedOperations(mode)(torch.ops.aten.neg.default, (theirs,), {}).fake_mode is owner


def test_equal_numbers_of_two_types_are_two_arguments() -> None:
    mode = FakeTensorMode()
    remembered = RememberedOperations(mode)
    for number, dtype in ((1, torch.int64), (1.0, torch.float32), (True, torch.int64)):
        (_, made, _), _ = made_by(remembered, mode, lambda x, number=number: x * number, torch.int64)  # type: ignore[misc]
        assert made[3] == dtype


def test_a_storage_lives_as_long_as_what_is_remembered_of_it_is_looked_at() -> None:
    """A view counts as its base, and the cache keeps nothing alive."""
    mode = FakeTensorMode()
    remembered = RememberedOperations(mode)
    with mode, AllocationTracker(remembered) as tracker:
        for _ in range(2):
            view = torch.empty(4, 8)[1:]
            assert tracker.live == 4 * 8 * 4
            del view
            assert tracker.live == 0


def test_what_is_changed_is_the_tensor_that_was_asked_to_be() -> None:
    mode = FakeTensorMode()
    remembered = RememberedOperations(mode)
    with mode, AllocationTracker(remembered):
        for _ in range(2):
            x, other = torch.empty(4, 8), torch.empty(4, 8)
            assert torch.mul(x, 2, out=x) is x
            assert torch.mul(x, 2, out=other) is other
            assert x.add_(other) is x
            assert x.add_(x) is x

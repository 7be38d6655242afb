"""Allocation tracker: bytes alive after every operation, of tensors that have no values."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _dequantized(arguments: tuple[Any, ...]) -> int:
    """Bytes of the matrix that a product with a 4-bit one dequantizes."""
    x, _, shape = arguments[:3]
    return int(shape[0] * shape[1] * x.element_size())


#: Operations that allocate within themselves: bytes of their workspace, from their arguments.
_WORKSPACES: dict[str, Callable[[tuple[Any, ...]], int]] = {"bitsandbytes::gemm_4bit": _dequantized}


#: Runs an operation.
Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_DEVICE = torch.ops.prim.device.default


def run_operation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation as it is."""
    return func(*args, **kwargs)


class AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations allocate, until they are freed.

    Works on fake tensors as on real ones; :attr:`points` has the bytes alive after every operation, those of its
    workspace included.

    Args:
        run: Runs an operation on its arguments, positional and named.
    """

    def __init__(self, run: Run = run_operation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run
        self.live = 0
        self.points: list[int] = []
        self._sizes: dict[int, tuple[weakref.ref[Any], int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under it, and keeping the compiler away costs more than most operations."""
        return False

    def begin(self) -> None:
        """Start a new list of points."""
        self.points = [self.live]

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's storage was allocated under this tracker."""
        found = self._sizes.get(tensor.untyped_storage()._cdata)
        return found is not None and found[0]() is not None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it allocates."""
        if func is _DEVICE:
            # Autograd asks every fake tensor for its device, more often than all operations are run.
            return args[0].fake_device
        made = self._run(func, args, kwargs or {})
        # What is made of numbers (``torch.tensor``) comes as an argument first.
        known = () if func is torch.ops.aten.lift_fresh.default else args
        for tensor in _tensors(made):
            self._note(tensor, known)
        workspace = _WORKSPACES.get(func.name().partition(".")[0]) if hasattr(func, "name") else None
        self.points.append(self.live + (workspace(args) if workspace is not None else 0))
        return made

    def _note(self, tensor: torch.Tensor, args: tuple[Any, ...]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is not None and known[0]() is not None:
            return
        if any(one.untyped_storage()._cdata == key for one in _tensors(args)):
            # A view of something that was there before.
            return
        self._sizes[key] = (weakref.ref(storage, self._freeing(key, size)), size)
        self.live += size

    def _freeing(self, key: int, size: int) -> Callable[[Any], None]:
        def free(reference: Any) -> None:
            self.live -= size
            if (known := self._sizes.get(key)) is not None and known[0] is reference:
                del self._sizes[key]

        return free


def _tensors(made: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))

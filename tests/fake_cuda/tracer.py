"""Tracer of operations on the card: launches, arithmetic, traffic, waits of the host, allocations.

Bytes are those that a kernel has to read and write, each tensor once. A wait is anything that lets the host stand still
until the device has done all that is queued: values that are read, and copies that are not asynchronous on both sides.
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.worker.measure.tracker import Run, flash_scratch, run_operation
from tests.fake_cuda.card import pinned

_DEVICE = torch.ops.prim.device.default
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
_HALF, _WIDE = (torch.bfloat16, torch.float16), (torch.float32, torch.float64)
#: Operations without a kernel.
_VIEWS = frozenset(
    (
        *("view", "_unsafe_view", "_reshape_alias", "alias", "detach", "as_strided", "view_as_real", "view_as_complex"),
        *("t", "transpose", "permute", "expand", "unfold", "diagonal", "squeeze", "unsqueeze"),
        *("slice", "select", "narrow", "split", "split_with_sizes", "unbind", "chunk"),
        *("t_", "transpose_", "squeeze_", "unsqueeze_", "detach_", "set_", "resize_"),
        *("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "lift_fresh", "lift_fresh_copy"),
        *("is_same_size", "is_pinned", "record_stream", "_local_scalar_dense"),
    )
)
#: Operations whose result has a shape that follows from values.
_BY_VALUES = frozenset(["nonzero", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive", "equal"])
_PRODUCTS = {"mm": 0, "bmm": 0, "_grouped_mm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
_GATHERS = frozenset(["index_select", "embedding", "index", "gather"])
_FILLS = frozenset(["zero_", "fill_", "copy_", "normal_", "uniform_", "random_", "bernoulli_", "masked_fill_"])
_FLASH, _FLASH_BACKWARD = "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"
_VARLEN, _VARLEN_BACKWARD = "_varlen_attn", "_varlen_attn_backward"
#: Work of attention's backward pass, as a multiple of its forward pass: five products instead of two.
_ATTENTION_BACKWARD = 2.5
_ROOT = Path(__file__).resolve().parents[2]
#: Tracers at work; backward runs in a thread of its own.
_active: list[Tracer] = []


@dataclass(frozen=True)
class Launch:
    """A kernel of the trace.

    Args:
        name: The operation.
        flops: Its arithmetic.
        bytes: Bytes read and written.
        shapes: Shapes of its first tensors.
    """

    name: str
    flops: float
    bytes: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass
class Trace:
    """Record of a tracer.

    Args:
        launches: Kernels, in order.
        waits: Waits of the host: reason and place in the code.
        uploads: Bytes of each asynchronous copy to the card.
        widened: Copies of 16-bit tensors in fp32, and their places: the shape of each.
        mixed: Products of two dtypes, and where.
        attention: Number of calls of each attention kernel.
        events: Allocations and frees in order: the number of the storage, and its bytes, negative for a free.
        peak: Most bytes alive, those before the trace among them.
    """

    launches: list[Launch] = field(default_factory=list)
    waits: list[tuple[str, str]] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    widened: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    mixed: list[tuple[str, str]] = field(default_factory=list)
    attention: dict[str, int] = field(default_factory=dict)
    events: list[tuple[int, int]] = field(default_factory=list)
    peak: int = 0

    @property
    def bytes(self) -> int:
        """Bytes read and written by all kernels."""
        return sum(launch.bytes for launch in self.launches)

    @property
    def flops(self) -> float:
        """Arithmetic of all kernels."""
        return sum(launch.flops for launch in self.launches)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Traces operations on tensors of the card.

    Values that are read are zero, or true; fake tensors have none.

    Args:
        wide: Elements from which a copy of a 16-bit tensor in fp32 is noted.
        run: Runs an operation on its arguments, positional and named.
    """

    def __init__(self, wide: int, run: Run = run_operation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wide, self._run = wide, run
        self.trace = Trace()
        self.live = 0
        self._numbers: dict[int, tuple[weakref.ref[Any], int, int]] = {}
        self._allocated = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Tracer:
        _active.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *details: Any) -> None:
        _active.remove(self)
        super().__exit__(*details)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Begin a new trace; what is alive stays."""
        self.trace = Trace(peak=self.live)

    def wait(self, reason: str) -> None:
        """Note a wait of the host."""
        self.trace.waits.append((reason, place()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it does."""
        if func is _DEVICE:
            return args[0].fake_device
        kwargs = kwargs or {}
        full = func._schema.name if hasattr(func, "_schema") else str(func)
        name = full.rpartition("::")[2]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name == "_local_scalar_dense":
            return self._read(args[0])
        if any(map(_is_here, given)):
            if name in _BY_VALUES:
                self.wait(f"{name} has to know values")
                if name == "equal":
                    return True
            self._check(name, args, given)
        if name in ("_to_copy", "copy_"):
            self._copied(name, args, kwargs)
        made = self._run(func, args, kwargs)
        found = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        if kwargs.get("pin_memory"):
            for tensor in found:
                pinned.add(tensor)
        # ``torch.tensor`` first passes the new tensor as an argument.
        known = () if func in _LIFTS else given
        for tensor in found:
            self._note(tensor, known)
        if name not in _VIEWS and (any(map(_is_here, found)) or any(map(_is_here, given))):
            self._launched(full, func, args, given, found)
        return made

    def triton(self, function: Any, named: dict[str, torch.Tensor]) -> None:
        """Note the launch of a Triton kernel.

        Args:
            function: The kernel.
            named: Its tensors, by the names of its arguments.
        """
        moved = sum(_bytes(tensor) * _passes(function, name) for name, tensor in named.items())
        shapes = tuple(tuple(tensor.shape) for tensor in named.values())
        flops = _kernel_flops(function.__name__, named)
        self.trace.launches.append(Launch(f"triton::{function.__name__}", flops, moved, shapes))

    def _read(self, x: torch.Tensor) -> bool | int | float:
        if _is_here(x):
            self.wait(f"a value of {x.dtype} is read")
        return True if x.dtype == torch.bool else 0.0 if x.is_floating_point() else 0

    def _check(self, name: str, args: tuple[Any, ...], given: Sequence[torch.Tensor]) -> None:
        """Note what a card would refuse, or wait for, where fake tensors do not mind."""
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [one for one in args[1] if one is not None]
            if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
                self.wait("a mask is an index")
            if not all(map(_is_here, indices)):
                self.wait("an index on the host is uploaded")
        if name in _PRODUCTS or name in (_FLASH, _VARLEN):
            dtypes = {one.dtype for one in given if one.dim() > 1 and one.is_floating_point()}
            if len(dtypes) > 1:
                both = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
                self.trace.mixed.append((f"{name} of {both}", place()))

    def _copied(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a copy between host and card: a wait, unless it is asynchronous and the host's side is pinned."""
        if name == "copy_":
            into, of = args[:2]
            to, asynchronous = _device(into), bool(args[2]) if len(args) > 2 else False
        else:
            into, of = None, args[0]
            to, asynchronous = torch.device(kwargs.get("device") or _device(of)), False
        asynchronous = asynchronous or bool(kwargs.get("non_blocking"))
        here = _device(of)
        if here.type == to.type:
            return
        on_host = into if here.type == "cuda" else of
        # A host tensor that does not exist yet is pageable.
        if not asynchronous or on_host is None or on_host not in pinned:
            self.wait(f"a copy of {tuple(of.shape)} from {here.type} to {to.type}")
        elif to.type == "cuda":
            self.trace.uploads.append(of.numel() * of.element_size())

    def _launched(
        self, full: str, func: Any, args: tuple[Any, ...], given: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
    ) -> None:
        name = full.rpartition("::")[2]
        shapes = tuple(tuple(tensor.shape) for tensor in given[:3])
        moved = _moved(name, func, args, given, found)
        self.trace.launches.append(Launch(full, _flops(name, args), moved, shapes))
        if name in (_FLASH, _VARLEN) or "efficient_attention" in name or "math" in name:
            self.trace.attention[name] = self.trace.attention.get(name, 0) + 1
        wide = [one for one in found if one.dtype in _WIDE and one.numel() >= self._wide]
        if wide and any(one.dtype in _HALF and one.numel() >= self._wide for one in given):
            self.trace.widened.append((tuple(wide[0].shape), place()))
        if name == _FLASH_BACKWARD:
            self._pass_through(flash_scratch(given[1], given[2]))

    # Allocations.

    def _note(self, tensor: torch.Tensor, given: Sequence[torch.Tensor]) -> None:
        if not _is_here(tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._numbers.get(key)
        if (known is not None and known[0]() is not None) or any(
            one.untyped_storage()._cdata == key for one in given if one is not tensor or known is not None
        ):
            return
        number = self._allocate(size)
        self._numbers[key] = (weakref.ref(storage, self._freeing(key, number, size)), number, size)

    def _allocate(self, size: int) -> int:
        self._allocated += 1
        self.live += size
        self.trace.peak = max(self.trace.peak, self.live)
        self.trace.events.append((self._allocated, size))
        return self._allocated

    def _free(self, number: int, size: int) -> None:
        self.live -= size
        self.trace.events.append((number, -size))

    def _freeing(self, key: int, number: int, size: int) -> Callable[[Any], None]:
        def free(reference: Any) -> None:
            self._free(number, size)
            if (known := self._numbers.get(key)) is not None and known[0] is reference:
                del self._numbers[key]

        return free

    def _pass_through(self, sizes: Sequence[int]) -> None:
        """Allocate and free what a kernel takes for itself."""
        numbers = [(self._allocate(size), size) for size in sizes]
        for number, size in numbers:
            self._free(number, size)


def wait(reason: str) -> None:
    """Note a wait of the host, whatever thread it is in.

    Args:
        reason: What the host waits for.
    """
    for tracer in _active:
        tracer.wait(reason)


def trace_triton() -> None:
    """Let launches of Triton kernels be noted instead of made, for the rest of this process."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Driver:
        """A driver without a device."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, _device: Any = None) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 89, 32)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        given = {**dict(zip(self.arg_names, args, strict=False)), **named}
        for tracer in _active:
            tracer.triton(self, {name: value for name, value in given.items() if isinstance(value, torch.Tensor)})

    driver.set_active(Driver())
    JITFunction.run = run


def place() -> str:
    """The innermost line of the project or of transformers that is running, and its callers."""
    found: list[str] = []
    frame = inspect.currentframe()
    while frame is not None and len(found) < 4:
        file = frame.f_code.co_filename
        if "/transformers/" in file or ("/core/" in file and file.startswith(str(_ROOT))):
            short = file.rpartition("site-packages/")[2].removeprefix(f"{_ROOT}/")
            found.append(f"{short}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)


def _device(tensor: torch.Tensor) -> torch.device:
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def _is_here(tensor: torch.Tensor) -> bool:
    return _device(tensor).type == "cuda"


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's numbers; those of an expanded one count once."""
    used = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        used *= size if stride or not size else 1
    return used * tensor.element_size()


def _moved(
    name: str, func: Any, args: tuple[Any, ...], given: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> int:
    """Bytes that an operation reads and writes."""
    if name in _GATHERS:
        indices = [one for one in given[1:] if not one.is_floating_point()]
        return sum(map(_bytes, indices)) + 2 * sum(map(_bytes, found))
    if name in ("index_put_", "_index_put_impl_", "index_copy_", "scatter_"):
        # Some of the tensor is written, as much as the values are; with a sum it is read as well.
        return sum(map(_bytes, given[1:])) + _bytes(given[-1]) * (2 if True in args[3:] else 1)
    changed = list(_changed(func, args))
    read = [one for one in given if not (name in _FILLS and any(one is each for each in changed))]
    seen: set[tuple[int, int, torch.Size]] = set()
    total = sum(map(_bytes, changed))
    for tensor in (*read, *(one for one in found if not any(one is each for each in changed))):
        key = (tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.shape)
        if _is_here(tensor) and key not in seen:
            seen.add(key)
            total += _bytes(tensor)
    return total


def _changed(func: Any, args: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    """Arguments that an operation changes in place."""
    if not hasattr(func, "_schema") or not func._schema.is_mutable:
        return
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and _is_here(leaf))


def _flops(name: str, args: tuple[Any, ...]) -> float:
    """Arithmetic of an operation: that of products and attention."""
    if name in _PRODUCTS:
        first = _PRODUCTS[name]
        left, right = args[first], args[first + 1]
        return float(2 * left.numel() * right.shape[-1])
    if name in (_FLASH, _FLASH_BACKWARD):
        query, key = args[:2] if name == _FLASH else args[1:3]
        rows, heads, queries, head = query.shape
        # Two products, of which causality leaves half.
        forward = 2.0 * rows * heads * queries * key.shape[2] * head
        return float(forward * (1 if name == _FLASH else _ATTENTION_BACKWARD))
    if name in (_VARLEN, _VARLEN_BACKWARD):
        query = args[0] if name == _VARLEN else args[1]
        longest = next(one for one in args if isinstance(one, int))
        forward = 2.0 * query.numel() * longest
        return float(forward * (1 if name == _VARLEN else _ATTENTION_BACKWARD))
    return 0.0


def _kernel_flops(name: str, named: dict[str, torch.Tensor]) -> float:
    """Arithmetic of a Triton kernel: that of products of a mixture's experts."""
    if name == "_rows_times":
        return 2.0 * named["rows"].numel() * named["out"].shape[-1]
    if name == "_sums_between":
        return 2.0 * named["left"].numel() * named["right"].shape[-1]
    return 0.0


def _passes(function: Any, name: str) -> int:
    """Times that a kernel goes over a tensor: twice where it both loads and stores it."""
    return max(1, sum(re.search(rf"tl\.{how}\(\s*{name}\b", function.src) is not None for how in ("load", "store")))

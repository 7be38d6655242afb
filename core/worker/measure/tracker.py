"""Tracker of allocations on tensors without values: bytes alive after every operation, and a cache of operations.

``FakeTensorMode`` has a cache of its own, whose keys and tensors cost several times more than is needed here: all
tensors are on one device, their shapes are numbers, and none has a value. Layers repeat the same operations in forward,
backward and recomputation, and scans over the chunks of a row repeat them within a layer.

The key of an operation is the same as there (``torch/_subclasses/fake_tensor.py``), with two exceptions: the bytes of a
storage, which only decide if a view is rejected, and the check for built-in operations, since bitsandbytes' follow from
shapes too. Autocast has changed the arguments by then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_CPU = torch.device("cpu")
#: Rows to which flash attention's backward pass pads the gradient of the queries.
_FLASH_ROWS = 128
#: Tags of operations whose results depend on values, or that change an argument's shape.
_BY_MORE = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view)
#: An index of numbers determines the result's shape by its own; a mask does not.
_INDEX, _MASKS = torch.ops.aten.index.Tensor, (torch.bool, torch.uint8)
#: Operations that make a fake tensor from one with values.
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
#: Types of arguments that are hashed by their value.
_PLAIN = frozenset(
    {bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
_dispatch_keys = torch._C._dispatch_keys


class _UnknownError(Exception):
    """An operation whose results do not follow from shapes alone."""


@dataclass(frozen=True)
class _Recipe:
    """Shape and storage of a tensor that an operation makes.

    Args:
        base: Place of the argument tensor whose storage it shares; None for a new storage.
        same: True if it is that argument itself, changed in place.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    base: int | None
    same: bool = False


class RememberedOperations:
    """Cache of fake-tensor operations by argument shapes; the mode runs an operation once for each.

    Args:
        mode: The mode of the fake tensors.
        device: The device of the tensors whose operations are cached.
    """

    def __init__(self, mode: FakeTensorMode, device: torch.device = _CPU) -> None:
        self._mode = mode
        self._device = device
        #: Results by key, a single tensor or several; None for operations that the mode runs each time.
        self._recipes: dict[Hashable, _Recipe | tuple[_Recipe, ...] | list[_Recipe] | None] = {}
        self._by_shapes: dict[Any, bool] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Result of an operation."""
        by_shapes = self._by_shapes.get(func)
        if by_shapes is None:
            by_shapes = self._by_shapes[func] = _by_shapes(func)
        if not by_shapes:
            return func(*args, **kwargs)
        tensors: list[torch.Tensor] = []
        try:
            named = self._key(tuple(kwargs.items()), tensors) if kwargs else None
            key = (func, _state(), self._key(args, tensors), named)
        except _UnknownError:
            return func(*args, **kwargs)
        if func is _INDEX and any(one.dtype in _MASKS for one in tensors[1:]):
            return func(*args, **kwargs)
        if key in self._recipes:
            known = self._recipes[key]
            return func(*args, **kwargs) if known is None else self._made(known, tensors)
        shapes = [_shape(one) for one in tensors]
        made = func(*args, **kwargs)
        # An operation with an output argument may have resized it.
        is_known = not func._schema.is_mutable or shapes == [_shape(one) for one in tensors]
        self._recipes[key] = _recipes(made, tensors, self._device) if is_known else None
        return made

    def _key(self, value: Any, tensors: list[torch.Tensor]) -> Hashable:
        """The part of a key that an argument adds; its tensors are added to ``tensors``.

        Raises:
            _UnknownError: If the result depends on values, or on properties of a tensor that only the mode knows.
        """
        kind = type(value)
        if kind is FakeTensor:
            # Numbers turned into tensors are constants, with special rules of dtype promotion.
            if value.constant is not None or value.fake_device != self._device:
                raise _UnknownError
            if value._has_symbolic_sizes_strides or value.fake_mode is not self._mode:
                raise _UnknownError
            try:
                stride = value.stride()
            except RuntimeError as error:
                raise _UnknownError from error  # a sparse one has none
            tensors.append(value)
            # Dispatch keys tell apart conjugate and negative views, inference tensors and quantized ones.
            keys = _dispatch_keys(value).raw_repr()
            return value.shape, stride, value.storage_offset(), value.dtype, keys, value.requires_grad
        if kind is tuple or kind is list:
            return kind, tuple([self._key(one, tensors) for one in value])
        # Tensors with values, symbols, generators, dictionaries.
        if kind not in _PLAIN:
            raise _UnknownError
        # Equal numbers of different types are different arguments.
        return kind, value

    def _made(self, known: Any, tensors: Sequence[torch.Tensor]) -> Any:
        with no_dispatch():
            if isinstance(known, _Recipe):
                return self._tensor(known, tensors)
            return type(known)([self._tensor(recipe, tensors) for recipe in known])

    def _tensor(self, recipe: _Recipe, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        if recipe.base is not None and recipe.same:
            return tensors[recipe.base]
        if recipe.base is None:
            bare = torch.empty_strided(recipe.shape, recipe.stride, dtype=recipe.dtype, device="meta")
        else:
            bare = torch.empty(0, dtype=recipe.dtype, device="meta")
            bare.set_(tensors[recipe.base].untyped_storage(), recipe.offset, recipe.shape, recipe.stride)
        return FakeTensor(self._mode, bare, self._device)


def _by_shapes(func: Any) -> bool:
    """True if shapes alone decide the results of an operation, and it leaves the shapes of its arguments alone.

    There are no values to change in place. Operations that lift a value depend on it.
    """
    if func is _INDEX:
        return True
    return (
        isinstance(func, torch._ops.OpOverload) and func not in _LIFTS and not any(tag in func.tags for tag in _BY_MORE)
    )


def _state() -> Hashable:
    """The part of a key that comes from PyTorch's own state."""
    return torch.get_default_dtype(), torch.is_inference_mode_enabled(), torch._C._get_default_device()


def _shape(tensor: torch.Tensor) -> tuple[torch.Size, tuple[int, ...], int, torch.dtype]:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype


def _recipes(
    made: Any, tensors: Sequence[torch.Tensor], device: torch.device
) -> _Recipe | tuple[_Recipe, ...] | list[_Recipe] | None:
    kind = type(made)
    if kind is not tuple and kind is not list:
        return _recipe(made, tensors, device)
    found = [_recipe(one, tensors, device) for one in made]
    recipes = [one for one in found if one is not None]
    if len(recipes) < len(found):
        return None
    return recipes if kind is list else tuple(recipes)


def _recipe(made: Any, tensors: Sequence[torch.Tensor], device: torch.device) -> _Recipe | None:
    if type(made) is not FakeTensor or made.constant is not None or made.fake_device != device:
        return None
    if made.layout is not torch.strided or _is_peculiar(made):
        return None
    if same := [place for place, one in enumerate(tensors) if made is one]:
        # A tensor passed in two places may be passed in only one of them the next time.
        return _Recipe(*_shape(made), same[0], same=True) if len(same) == 1 else None
    storage = made.untyped_storage()
    bases = [place for place, one in enumerate(tensors) if one.untyped_storage()._cdata == storage._cdata]
    recipe = _Recipe(*_shape(made), bases[0] if bases else None)
    if bases:
        return recipe
    # Scalars that are not part of another tensor may be numbers, see above.
    if not made.dim():
        return None
    with no_dispatch():
        own = torch.empty_strided(recipe.shape, recipe.stride, dtype=recipe.dtype, device="meta").untyped_storage()
    # Parts of a larger storage made by the operation are left to the mode.
    return recipe if not recipe.offset and own.nbytes() == storage.nbytes() else None


def _is_peculiar(made: FakeTensor) -> bool:
    """True if a tensor has properties beyond those of a bare tensor of its shape and dtype."""
    return (
        made.is_conj()
        or made.is_neg()
        or made._is_zerotensor()
        or made.is_quantized
        or made.requires_grad
        or made.is_inference() != torch.is_inference_mode_enabled()
    )


#: Runs an operation.
Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
_DEVICE = torch.ops.prim.device.default


def run_operation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation unchanged."""
    return func(*args, **kwargs)


class AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations allocate, until they are freed.

    Works on fake tensors as on real ones; :attr:`points` has the bytes alive after every operation, including its
    workspace.

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
        """False: nothing is compiled under it, and keeping the compiler away costs more than most operations."""
        return False

    def begin(self) -> None:
        """Start a new list of points."""
        self.points = [self.live]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count its allocations."""
        if func is _DEVICE:
            # Autograd asks every fake tensor for its device, more often than it runs operations.
            return args[0].fake_device
        made = self._run(func, args, kwargs or {})
        # ``torch.tensor`` first passes the new tensor as an argument.
        known = () if func is torch.ops.aten.lift_fresh.default else args
        for tensor in _tensors(made):
            self._note(tensor, known)
        self.points.append(self.live + _workspace(func, args))
        return made

    def _note(self, tensor: torch.Tensor, args: tuple[Any, ...]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is not None and known[0]() is not None:
            return
        if any(one.untyped_storage()._cdata == key for one in _tensors(args)):
            # A view of an earlier storage.
            return
        self._sizes[key] = (weakref.ref(storage, self._freeing(key, size)), size)
        self.live += size

    def _freeing(self, key: int, size: int) -> Callable[[Any], None]:
        def free(reference: Any) -> None:
            self.live -= size
            if (known := self._sizes.get(key)) is not None and known[0] is reference:
                del self._sizes[key]

        return free


def _workspace(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that an operation allocates within itself: a 4-bit product the matrix that it dequantizes, and the backward
    pass of flash attention its sums."""
    name = func.name().partition(".")[0] if hasattr(func, "name") else ""
    if name == "bitsandbytes::gemm_4bit":
        x, _, shape = args[:3]
        return int(shape[0] * shape[1] * x.element_size())
    if name == "aten::_scaled_dot_product_flash_attention_backward":
        return sum(flash_scratch(*args[1:3]))
    return 0


def flash_scratch(query: torch.Tensor, key: torch.Tensor) -> list[int]:
    """Bytes of the tensors that flash attention's backward pass allocates within itself: the gradient of the queries in
    fp32, and with grouped heads the gradients of keys and values for each query head (csrc/flash_attn/flash_api.cpp).

    Args:
        query: ``(rows, heads, tokens, head)``.
        key: ``(rows, groups, tokens, head)``.
    """
    rows, heads, queries, head = query.shape
    padded = -(-queries // _FLASH_ROWS) * _FLASH_ROWS
    sizes = [4 * rows * heads * padded * head]
    if key.shape[1] != heads:
        sizes += [rows * heads * key.shape[2] * head * key.element_size()] * 2
    return sizes


def _tensors(made: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))

"""Remembered operations on fake tensors: what one has made of arguments of some shapes it makes of such again.

``FakeTensorMode`` has a cache of its own, whose keys and tensors cost several times what is needed here: all tensors
are on one device, their shapes are numbers, and none has a value. Layers run the same operations again and again,
forward, backward and once more; scans over the pieces of a row do so within a layer.

What decides is what decides there (``torch/_subclasses/fake_tensor.py``), but for two things: the bytes of a storage,
which only tell whether a view is refused, and an operation's being built in, as those of bitsandbytes make what they
make by shapes too. Autocast has changed the arguments by then.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

_CPU = torch.device("cpu")
#: Tags of operations whose results depend on values, and of those that change the shape of what they get.
_BY_MORE = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view)
#: Indices of numbers tell the shape of what they choose; masks do not.
_INDEX, _MASKS = torch.ops.aten.index.Tensor, (torch.bool, torch.uint8)
#: Operations that make a fake tensor of one with values.
_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
#: Types of arguments that are what they are by their value, and are hashed by it.
_PLAIN = frozenset(
    {bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
_dispatch_keys = torch._C._dispatch_keys


class _UnknownError(Exception):
    """An operation that cannot be told by shapes alone."""


@dataclass(frozen=True)
class _Recipe:
    """A tensor that an operation makes.

    Args:
        base: The place, among the tensors of its arguments, of the one whose storage it has; None for a storage of its
            own.
        same: Whether it is that tensor itself, changed in place.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    base: int | None
    same: bool = False


class RememberedOperations:
    """Runs operations on fake tensors, those that are known without asking their mode.

    Args:
        mode: The mode of the fake tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        #: What operations make, one tensor or several; None for those that the mode has to be asked about each time.
        self._recipes: dict[Hashable, _Recipe | tuple[_Recipe, ...] | list[_Recipe] | None] = {}
        self._by_shapes: dict[Any, bool] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation makes of its arguments."""
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
        # One that is given its output's tensor may have resized it.
        is_known = not func._schema.is_mutable or shapes == [_shape(one) for one in tensors]
        self._recipes[key] = _recipes(made, tensors) if is_known else None
        return made

    def _key(self, value: Any, tensors: list[torch.Tensor]) -> Hashable:
        """All of an argument that decides what an operation makes; its tensors are added to ``tensors``.

        Raises:
            _UnknownError: If more than that decides: values, or what only the mode knows of a tensor.
        """
        kind = type(value)
        if kind is FakeTensor:
            # Numbers that became tensors take part in the promotion of dtypes in ways of their own; they are constants.
            if value.constant is not None or value.fake_device != _CPU:
                raise _UnknownError
            if value._has_symbolic_sizes_strides or value.fake_mode is not self._mode:
                raise _UnknownError
            try:
                stride = value.stride()
            except RuntimeError as error:
                raise _UnknownError from error  # a sparse one has none
            tensors.append(value)
            # Conjugate and negative views, inference tensors and quantized ones differ by their dispatch keys.
            keys = _dispatch_keys(value).raw_repr()
            return value.shape, stride, value.storage_offset(), value.dtype, keys, value.requires_grad
        if kind is tuple or kind is list:
            return kind, tuple([self._key(one, tensors) for one in value])
        # Tensors with values, symbols, generators, dictionaries.
        if kind not in _PLAIN:
            raise _UnknownError
        # Equal numbers of two types are not the same argument.
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
        return FakeTensor(self._mode, bare, _CPU)


def _by_shapes(func: Any) -> bool:
    """Whether what an operation makes can be told by the shapes of what it gets, and these stay as they are; values
    that it changes in place are not there to be changed. One that lifts a value makes it of that.
    """
    if func is _INDEX:
        return True
    return (
        isinstance(func, torch._ops.OpOverload) and func not in _LIFTS and not any(tag in func.tags for tag in _BY_MORE)
    )


def _state() -> Hashable:
    """What of PyTorch's state decides what an operation makes."""
    return torch.get_default_dtype(), torch.is_inference_mode_enabled(), torch._C._get_default_device()


def _shape(tensor: torch.Tensor) -> tuple[torch.Size, tuple[int, ...], int, torch.dtype]:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype


def _recipes(made: Any, tensors: Sequence[torch.Tensor]) -> _Recipe | tuple[_Recipe, ...] | list[_Recipe] | None:
    kind = type(made)
    if kind is not tuple and kind is not list:
        return _recipe(made, tensors)
    found = [_recipe(one, tensors) for one in made]
    recipes = [one for one in found if one is not None]
    if len(recipes) < len(found):
        return None
    return recipes if kind is list else tuple(recipes)


def _recipe(made: Any, tensors: Sequence[torch.Tensor]) -> _Recipe | None:
    if type(made) is not FakeTensor or made.constant is not None or made.fake_device != _CPU:
        return None
    if made.layout is not torch.strided or _is_peculiar(made):
        return None
    if same := [place for place, one in enumerate(tensors) if made is one]:
        # One that came in two places may come in one of them the next time.
        return _Recipe(*_shape(made), same[0], same=True) if len(same) == 1 else None
    storage = made.untyped_storage()
    bases = [place for place, one in enumerate(tensors) if one.untyped_storage()._cdata == storage._cdata]
    recipe = _Recipe(*_shape(made), bases[0] if bases else None)
    if bases:
        return recipe
    # Scalars that are no part of another tensor may be numbers, see above.
    if not made.dim():
        return None
    with no_dispatch():
        own = torch.empty_strided(recipe.shape, recipe.stride, dtype=recipe.dtype, device="meta").untyped_storage()
    # A part of something larger that the operation has made is left to the mode.
    return recipe if not recipe.offset and own.nbytes() == storage.nbytes() else None


def _is_peculiar(made: FakeTensor) -> bool:
    """Whether a tensor has what a bare one of its shape and dtype has not."""
    return (
        made.is_conj()
        or made.is_neg()
        or made._is_zerotensor()
        or made.is_quantized
        or made.requires_grad
        or made.is_inference() != torch.is_inference_mode_enabled()
    )

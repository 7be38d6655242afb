"""Tensors in a file while a model is put together, so that it need not fit in memory.

They are mapped: read and written as others are, and given back by the system, which has them on the disk, where memory
is short.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

#: Each tensor begins at a multiple of it, as no element may lie across two of its own size.
_ALIGNMENT = 64


class Spill:
    """A file that tensors are moved to.

    Args:
        path: Of the file, which is made; it may be deleted while tensors are in use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0
        path.touch()

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same tensor in the file.

        Raises:
            OSError: If there is no room for it.
        """
        if tensor.numel() == 0:
            return tensor
        content = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
        begin = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        with self._path.open("r+b") as file:
            file.seek(begin)
            file.write(content.data)
        self._end = begin + content.nbytes
        mapped = np.memmap(self._path, dtype=np.uint8, mode="r+", offset=begin, shape=content.shape)
        return torch.from_numpy(mapped).view(tensor.dtype).view(tensor.shape)


class SpilledTensors(dict[str, torch.Tensor]):
    """Tensors by name that are in a file, in one dtype, as soon as they are put in here.

    Args:
        spill: The file.
        dtype: Of all of them.
    """

    def __init__(self, spill: Spill, dtype: torch.dtype) -> None:
        super().__init__()
        self._spill = spill
        self._dtype = dtype

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        super().__setitem__(name, self._spill.move(tensor.to(self._dtype)))


@contextlib.contextmanager
def parameters_spilled(spill: Spill) -> Iterator[None]:
    """Inside, parameters that any module gets are moved to the file as soon as it gets them.

    Args:
        spill: The file.
    """

    there: set[int] = set()

    def move(_module: object, _name: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
        # One that is tied to another comes twice, and has to stay the same.
        if parameter is None or parameter.device.type != "cpu" or parameter.data_ptr() in there:
            return parameter
        moved = torch.nn.Parameter(spill.move(parameter), requires_grad=parameter.requires_grad)
        # Loaders mark parameters that need no initialization.
        vars(moved).update(vars(parameter))
        there.add(moved.data_ptr())
        return moved

    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()

"""Tensors in a memory-mapped file while a model is assembled, so that it need not fit in memory.

They are used like other tensors; under memory pressure the system drops their pages, which are on disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

#: Alignment of tensors in the file; an element may not straddle a multiple of its size.
_ALIGNMENT = 64


class Spill:
    """A file for tensors.

    Args:
        path: Path of the file, which is created; it may be deleted while tensors are in use.
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
    """Tensors by name that are moved to a file, in a single dtype, as they are added.

    Args:
        spill: The file.
        dtype: Dtype of all tensors.
    """

    def __init__(self, spill: Spill, dtype: torch.dtype) -> None:
        super().__init__()
        self._spill = spill
        self._dtype = dtype

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        super().__setitem__(name, self._spill.move(tensor.to(self._dtype)))


@contextlib.contextmanager
def parameters_spilled(spill: Spill) -> Iterator[None]:
    """Inside, parameters are moved to the file as soon as any module registers them.

    Args:
        spill: The file.
    """

    there: set[int] = set()

    def move(_module: object, _name: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
        # Tied parameters come twice, and must stay the same tensor.
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

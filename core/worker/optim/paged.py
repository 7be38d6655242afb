"""Paged optimizer states: managed memory that the driver moves between the card and the host.

bitsandbytes allocates it with a call that ends the process on failure. Here the free memory is checked first, and the
driver is called directly so that a refusal is an ordinary error. Buffers left by a failed or rehearsed step are reused,
because managed memory is never freed.

To torch such a buffer is a host tensor. The host must not touch it while kernels may use it: its pages would move back
and forth at each step, and on a card without concurrent access the process would be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import torch

from core.errors import UserError
from core.hardware import cpu
from core.units import format_bytes

#: Number of elements from which bitsandbytes pages a state.
SMALLEST = 100_000
#: Host memory that paged states leave free, in bytes.
HOST_RESERVE = 1 << 30
#: CUDA driver API: memory visible to every stream on every device.
_ATTACH_GLOBAL = 1
_OUT_OF_MEMORY = 2

#: Allocator of a buffer: shape, dtype and device.
Allocate = Callable[[tuple[int, ...], torch.dtype, torch.device], torch.Tensor]


def is_paged(value: Any) -> bool:
    """True if a state is a buffer in managed memory."""
    return bool(getattr(value, "is_paged", False))


def unpaged_where_needed(optimizer: str, *, wsl: bool, rocm: bool) -> tuple[str, str]:
    """The optimizer to use for ``train.optimizer``, and the reason if it is another. Where pages cannot move while a
    kernel runs, a paged one is replaced by its unpaged form with the same states.

    Args:
        optimizer: ``train.optimizer``.
        wsl: Whether a card is driven by Windows.
        rocm: Whether the card is AMD's, most of which need their pages in place.
    """
    unpaged = optimizer.removeprefix("paged_")
    if unpaged == optimizer or not (wsl or rocm):
        return optimizer, ""
    return unpaged, f"{'WSL2' if wsl else 'ROCm'} cannot page the states of {optimizer}, which stay on the card"


def check_room(needed: int, host: int, card: int) -> None:
    """Check that a buffer fits into the memory the driver may move it to.

    Args:
        needed: Size of the buffer in bytes.
        host: Free host memory in bytes.
        card: Free memory of the card in bytes.

    Raises:
        UserError: If it does not.
    """
    if needed > max(0, host - HOST_RESERVE) + card:
        raise UserError(
            f"The paged states of the optimizer do not fit: {format_bytes(needed)} more are needed, and "
            f"{format_bytes(host)} of the machine's memory and {format_bytes(card)} of the card's are free.",
            "Close other programs, or set train.optimizer = adamw_8bit, which needs room on the card alone, or train "
            "less: method.name = freeze, or a lower method.rank.",
        )


class PagedBuffers:
    """State buffers of paged optimizers; called like bitsandbytes' ``get_state_buffer``.

    Args:
        allocate: Allocates a buffer on any device; None for managed memory on a card and ordinary memory elsewhere.
        clear: Fills a buffer with zeros; None for bitsandbytes' way, on the card.
    """

    def __init__(self, allocate: Allocate | None = None, clear: Callable[[torch.Tensor], object] | None = None) -> None:
        self._allocate = allocate or allocate_managed
        self._clear = clear or _clear_on_card
        self._devices = ("cuda",) if allocate is None else ("cuda", "cpu")
        self._unused: dict[tuple[tuple[int, ...], torch.dtype], list[torch.Tensor]] = defaultdict(list)

    def __call__(self, parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Zeros in the shape of a parameter, paged if it is on a card and large enough."""
        if parameter.device.type not in self._devices or parameter.numel() < SMALLEST:
            return torch.zeros_like(parameter, dtype=dtype)
        shape = tuple(parameter.shape)
        unused = self._unused[shape, dtype]
        buffer = unused.pop() if unused else self._allocate(shape, dtype, parameter.device)
        self._clear(buffer)
        return buffer

    def give_back(self, state: Mapping[str, Any]) -> None:
        """Reclaim the buffers of a dropped parameter state for reuse."""
        for value in state.values():
            if is_paged(value):
                self._unused[tuple(value.shape), value.dtype].append(value)


def allocate_managed(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, driver: Any = None
) -> torch.Tensor:
    """A paged tensor as bitsandbytes allocates it, but without ending the process when memory runs out.

    Args:
        shape: Shape of the tensor.
        dtype: Its dtype.
        device: The card that uses it.
        driver: CUDA driver library; None to load it.

    Raises:
        UserError: If there is no memory to page it to.
        torch.OutOfMemoryError: If the driver has no memory for it.
    """
    size = math.prod(shape) * dtype.itemsize
    if driver is None:
        used, total = cpu.memory()
        check_room(size, total - used, _free_on_card(device))
        with contextlib.suppress(OSError):
            driver = ctypes.CDLL("libcuda.so.1")
    address = ctypes.c_uint64()
    code = -1
    if driver is not None:
        code = driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(_ATTACH_GLOBAL))
    if code == _OUT_OF_MEMORY:
        raise torch.OutOfMemoryError(f"CUDA out of memory: {format_bytes(size)} of managed memory.")
    if code != 0:
        buffer: torch.Tensor = bnb.get_paged(*shape, dtype=dtype, device=device)
        return buffer
    pointer = ctypes.cast(ctypes.c_void_p(address.value), ctypes.POINTER(ctypes.c_ubyte))
    made: Any = torch.frombuffer(np.ctypeslib.as_array(pointer, shape=(size,)), dtype=dtype).view(shape)
    # Attributes by which bitsandbytes recognizes paged tensors.
    made.is_paged = True
    made.page_deviceid = device.index
    paged: torch.Tensor = made
    return paged


def load_states(
    optimizer: Any, saved: dict[str, Any], like: Callable[[torch.Tensor], torch.Tensor] = lambda parameter: parameter
) -> None:
    """Restore an optimizer's state; paged states become paged again.

    Args:
        optimizer: Any optimizer; a paged one has its buffers from :class:`PagedBuffers`.
        saved: Its ``state_dict``.
        like: Returns a tensor with the shape and device of a parameter's states.
    """
    if not getattr(optimizer, "is_paged", False):
        optimizer.load_state_dict(saved)
        for state in optimizer.state.values():
            # Copies keep the attribute that marks paged tensors.
            state.update({name: value.detach() for name, value in state.items() if is_paged(value)})
        return
    settle(optimizer)
    buffers: PagedBuffers = optimizer.get_state_buffer
    for state in optimizer.state.values():
        buffers.give_back(state)
    # A state moved to the card would stay there.
    optimizer.load_state_dict(saved, move_to_device=False)
    for parameter, state in optimizer.state.items():
        of = like(parameter)
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                moments = name.startswith("state")
                state[name] = buffers(of, dtype=value.dtype).copy_(value) if moments else value.to(of.device)


def settle(optimizer: Any) -> None:
    """Wait until no kernel uses paged states, before the host reads or writes them."""
    if getattr(optimizer, "is_paged", False) and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _clear_on_card(buffer: torch.Tensor) -> None:
    bnb.fill(buffer, 0)


def _free_on_card(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)

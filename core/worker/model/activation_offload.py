"""Activation offloading: inputs of checkpointed layers live in pinned host memory between forward and backward.

With activations recomputed, only the input of each layer is left of the forward pass: layers x tokens x features
numbers. Torch's non-reentrant checkpoint keeps it as a saved tensor, so a pair of saved-tensor hooks around the call of
a layer catches it, and none of the tensors saved by the layer, the last norm or the loss.

On a GPU an :class:`ActivationMover` copies on separate streams while the device computes: a layer's input goes away
while the layer runs, and comes back while the layer above it runs backward, a prefetch of one layer, as in torchtune's
activation offloading. Three rules keep memory correct without a wait on the host:

* Device blocks are allocated and freed on the compute stream. A copy into a new block waits for all work queued there
  so far, since the block may still be in use.
* A tensor is held until the compute stream has waited for its copy, so the next user of the block comes after the copy.
* Pinned blocks are torch's: the allocator records the copying streams and reuses no block before they are done.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from core.hardware.drivers import is_wsl
from core.memory.sizes import OFFLOAD_SMALLEST


class CudaLanes:
    """The streams of a CUDA device, in each of which work is done in order, and memory on both sides. The copying
    streams are made for the first copy.
    """

    @functools.cached_property
    def out(self) -> Any:
        """The stream of copies to the host."""
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @functools.cached_property
    def back(self) -> Any:
        """The stream of copies to the device: the two directions of the bus are independent."""
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def computing(self) -> Any:
        """The compute stream, on which all device blocks are allocated and freed: the current one of the calling
        thread; in backward, that of the forward pass.
        """
        return torch.cuda.current_stream()

    def on_host(self, like: torch.Tensor) -> torch.Tensor:
        """A pinned tensor, strides and all."""
        return torch.empty_like(like, device="cpu", pin_memory=True)

    def on_device(self, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        """A tensor from torch's allocator."""
        return torch.empty_like(like, device=device, pin_memory=False)

    def copy(self, into: torch.Tensor, of: torch.Tensor, stream: Any) -> None:
        """Asynchronous, as one side is pinned."""
        with torch.cuda.stream(stream):
            into.copy_(of, non_blocking=True)


@dataclass(eq=False)
class Moved:
    """An activation that has been moved to the host.

    Args:
        copy: The copy on the host; complete after ``gone``.
        device: The original device.
        gone: The event of its copy.
        before: The activation moved before it in the same forward pass, and so needed after it.
        asked: True once it was requested.
    """

    copy: torch.Tensor
    device: torch.device
    gone: Any
    before: Moved | None
    asked: bool = False


@dataclass(frozen=True)
class _Arriving:
    moved: weakref.ref[Moved]
    tensor: torch.Tensor
    there: Any


class ActivationMover:
    """Moves activations away and back.

    Args:
        lanes: The device's.
    """

    def __init__(self, lanes: CudaLanes) -> None:
        self._lanes = lanes
        self._going: list[tuple[torch.Tensor, Any]] = []
        self._arriving: _Arriving | None = None
        self._last: weakref.ref[Moved] | None = None

    def away(self, tensor: torch.Tensor) -> Moved:
        """Start moving an activation, which is held until :meth:`settle`.

        Args:
            tensor: Without gradient.
        """
        self._take_arriving()  # left over from a backward pass that ended early
        lanes = self._lanes
        copy = lanes.on_host(tensor)
        lanes.out.wait_event(lanes.computing().record_event())
        lanes.copy(copy, tensor, lanes.out)
        gone = lanes.out.record_event()
        self._going.append((tensor, gone))
        last = None if self._last is None else self._last()
        moved = Moved(copy, tensor.device, gone, None if last is None or last.asked else last)
        self._last = weakref.ref(moved)
        return moved

    def settle(self) -> None:
        """Release the activations in transit, once their layer's work is queued: later work waits for the copies, and
        may reuse the memory."""
        computing = self._lanes.computing()
        while self._going:
            _, gone = self._going[0]
            computing.wait_event(gone)
            del self._going[0]

    def back(self, moved: Moved) -> torch.Tensor:
        """An activation on its device, for work queued from now on; the one before it is prefetched.

        Args:
            moved: From :meth:`away`.
        """
        self.settle()
        moved.asked = True
        arrived = self._take_arriving()
        if arrived is not None and arrived.moved() is moved:
            tensor = arrived.tensor
        else:
            del arrived
            tensor, there = self._fetch(moved)
            self._lanes.computing().wait_event(there)
        before, moved.before = moved.before, None
        if before is not None and not before.asked:
            self._prefetch(before)
        return tensor

    def _prefetch(self, moved: Moved) -> None:
        try:
            tensor, there = self._fetch(moved)
        except torch.OutOfMemoryError:
            return  # it is fetched on request
        self._arriving = _Arriving(weakref.ref(moved), tensor, there)

    def _fetch(self, moved: Moved) -> tuple[torch.Tensor, Any]:
        lanes = self._lanes
        tensor = lanes.on_device(moved.copy, moved.device)
        lanes.back.wait_event(lanes.computing().record_event())
        lanes.back.wait_event(moved.gone)
        lanes.copy(tensor, moved.copy, lanes.back)
        return tensor, lanes.back.record_event()

    def _take_arriving(self) -> _Arriving | None:
        """The prefetched activation; from now on its memory may be used and freed."""
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            self._lanes.computing().wait_event(arriving.there)
        return arriving


# Inputs of layers.


def is_large_activation(tensor: torch.Tensor) -> bool:
    """True if a saved tensor is worth moving: an activation on a GPU, of a megabyte or more.

    Masks and position tables need no gradient, and are shared by many layers; parameters and their views stay on the
    device anyway.
    """
    return tensor.is_cuda and tensor.nbytes >= OFFLOAD_SMALLEST and is_activation(tensor)


def is_activation(tensor: torch.Tensor) -> bool:
    """True if it depends on trained parameters, is not a parameter itself, and is not empty.

    Checkpointing before torch 2.11 saves an empty tensor beside a layer's inputs.
    """
    own = tensor if tensor._base is None else tensor._base
    is_made = tensor.is_floating_point() and tensor.requires_grad and not isinstance(own, torch.nn.Parameter)
    return is_made and tensor.numel() > 0


@dataclass(frozen=True)
class ActivationOffload:
    """Moves layers' inputs away and back.

    Args:
        mover: Moves them in the background.
        wanted: Predicate for the tensors that are moved.
    """

    mover: ActivationMover
    wanted: Callable[[torch.Tensor], bool] = is_large_activation

    def around(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpoint function whose saved inputs are moved.

        Args:
            checkpoint: ``torch.utils.checkpoint.checkpoint``, non-reentrant, or a partial of it. Its own hooks take
                precedence inside.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                with saved_tensors_hooks(self._pack, self._unpack):
                    return checkpoint(*args, **kwargs)
            finally:
                self.mover.settle()

        return call

    def install(self, model: torch.nn.Module) -> None:
        """Move the inputs of all recomputed layers.

        Args:
            model: A ``transformers`` model with activation checkpointing on; switching that on or off again removes
                the offload.

        Raises:
            ValueError: If it has no such layer.
        """
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
        if not layers:
            raise ValueError("The model has no layers that are recomputed.")
        for layer in layers:
            layer._gradient_checkpointing_func = self.around(layer._gradient_checkpointing_func)

    def _pack(self, tensor: torch.Tensor) -> Moved | tuple[torch.Tensor, torch.device]:
        # Detached: the graph would otherwise keep itself alive.
        plain = tensor.detach()
        if not self.wanted(tensor):
            return plain, tensor.device
        with torch.no_grad():
            return self.mover.away(plain)

    def _unpack(self, packed: Moved | tuple[torch.Tensor, torch.device]) -> torch.Tensor:
        if isinstance(packed, tuple):
            kept, device = packed
            return kept.to(device)
        with torch.no_grad():
            return self.mover.back(packed)


def available_offload(choice: str, device: torch.device) -> ActivationOffload | None:
    """The offload for a device; None where ``memory.activation_offload`` or the device rules it out.

    Under WSL 2 page-locked memory is scarce, so it takes an explicit ``on``.
    """
    wanted = choice == "on" or (choice == "auto" and not is_wsl())
    return ActivationOffload(ActivationMover(CudaLanes())) if device.type == "cuda" and wanted else None

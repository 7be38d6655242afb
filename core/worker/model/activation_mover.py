"""Copies of activations to the host and back, on streams of their own, while the device computes.

A layer's input is copied away while the layer runs, and back while the layer behind it is run backward: one layer of
prefetch, as torchtune's activation offloading has it. Three rules keep the memory right, without the host ever waiting:

* Every block of the device is taken and given back on the stream that computes. So a copy into a new block waits for
  what has been computed by then, as the block may still be in use.
* A tensor is held until the stream that computes has waited for the copy of it. So what takes the block next comes
  after the copy.
* Pinned blocks are torch's, which marks in them the streams that copy, and uses none again before they have done so.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Stream(Protocol):
    """A stream of the device, in which work is done in order."""

    def wait_event(self, event: Any) -> None:
        """Let what comes into the stream later wait for an event."""

    def record_event(self) -> Any:
        """An event that is there when the stream has come so far."""


class Lanes(Protocol):
    """The streams of a device, and memory on both sides."""

    @property
    def out(self) -> Stream:
        """Copies to the host."""

    @property
    def back(self) -> Stream:
        """Copies to the device."""

    def computing(self) -> Stream:
        """The stream that computes, on which all blocks of the device are taken and given back."""

    def on_host(self, like: torch.Tensor) -> torch.Tensor:
        """Pinned memory for a copy."""

    def on_device(self, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Memory of the device for a copy."""

    def copy(self, into: torch.Tensor, of: torch.Tensor, stream: Stream) -> None:
        """Let a stream copy."""


class CudaLanes:
    """The lanes of a CUDA device; the streams are made when the first copy asks for them."""

    @functools.cached_property
    def out(self) -> torch.cuda.Stream:
        """A stream of its own."""
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @functools.cached_property
    def back(self) -> torch.cuda.Stream:
        """Another one: the two directions of the bus are independent."""
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def computing(self) -> torch.cuda.Stream:
        """The stream of the thread that asks: in backward, that of the forward pass."""
        return torch.cuda.current_stream()

    def on_host(self, like: torch.Tensor) -> torch.Tensor:
        """A pinned tensor, strides and all."""
        return torch.empty_like(like, device="cpu", pin_memory=True)

    def on_device(self, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        """A tensor of torch's allocator."""
        return torch.empty_like(like, device=device, pin_memory=False)

    def copy(self, into: torch.Tensor, of: torch.Tensor, stream: Any) -> None:
        """Without waiting, as one side is pinned."""
        with torch.cuda.stream(stream):
            into.copy_(of, non_blocking=True)


@dataclass(eq=False)
class Moved:
    """An activation that has been moved to the host.

    Args:
        copy: On the host; whole after ``gone``.
        device: Where it came from.
        gone: The event of its copy.
        before: What was moved before it in the same forward pass, and so is needed after it.
        asked: Whether it has been asked for.
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
        lanes: Of the device.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._going: list[tuple[torch.Tensor, Any]] = []
        self._arriving: _Arriving | None = None
        self._last: weakref.ref[Moved] | None = None

    def away(self, tensor: torch.Tensor) -> Moved:
        """Begin to move an activation, which is held until :meth:`settle`.

        Args:
            tensor: Without gradient.
        """
        self._take_arriving()  # of a backward pass that ended early
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
        """Let go of the activations on their way, when their layer's work has been given to the device: what comes
        after it waits for the copies, and may have their memory."""
        computing = self._lanes.computing()
        while self._going:
            _, gone = self._going[0]
            computing.wait_event(gone)
            del self._going[0]

    def back(self, moved: Moved) -> torch.Tensor:
        """An activation on its device, for work that is given to it from now on; the one before it is fetched as well.

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
            return  # it is fetched when it is asked for
        self._arriving = _Arriving(weakref.ref(moved), tensor, there)

    def _fetch(self, moved: Moved) -> tuple[torch.Tensor, Any]:
        lanes = self._lanes
        tensor = lanes.on_device(moved.copy, moved.device)
        lanes.back.wait_event(lanes.computing().record_event())
        lanes.back.wait_event(moved.gone)
        lanes.copy(tensor, moved.copy, lanes.back)
        return tensor, lanes.back.record_event()

    def _take_arriving(self) -> _Arriving | None:
        """What was fetched ahead; from now on its memory may be used and given back."""
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            self._lanes.computing().wait_event(arriving.there)
        return arriving

"""Frozen weights that live on the host: brought to the device layer by layer, one layer ahead of what is computed.

The counterpart of :mod:`core.worker.model.activation_mover` for what never changes, so that it is copied one way only.
The device has two buffers, each as large as the largest layer: the weights of the layer at work, and those of the next
one on their way, in forward and in backward. Two rules keep the memory right, without the host ever waiting:

* A buffer is written when the stream that computes has done all that was given to it before the layer at work, which
  uses the other buffer.
* Work that reads a buffer waits for its copy.

Who uses the weights asks for them each time, in backward again, and keeps none beyond its layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from core.memory.sizes import EXPERT_LAYERS, HOST_SLAB
from core.worker.model.activation_mover import Lanes

#: Tensors in a buffer begin at multiples of it, which suits every dtype and the bus.
_ALIGNMENT = 512


@dataclass(frozen=True)
class _Place:
    """A tensor within a buffer of bytes."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    def of(self, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor as a view of a buffer."""
        end = self.offset + self.shape.numel() * self.dtype.itemsize
        return buffer[self.offset : end].view(self.dtype).view(self.shape)


@dataclass(frozen=True, eq=False)
class HostWeights:
    """Tensors of one layer on the host, as pieces of one row of bytes.

    Args:
        pieces: Bytes, in order.
        places: Places of the tensors within the row.
        bytes: Its length.
    """

    pieces: tuple[torch.Tensor, ...]
    places: tuple[_Place, ...]
    bytes: int

    @classmethod
    def joined(cls, layers: Sequence[HostWeights]) -> HostWeights:
        """Tensors that were kept one after the other as those of one layer.

        Args:
            layers: The weights.
        """
        places: list[_Place] = []
        begin = 0
        for layer in layers:
            places += [replace(place, offset=begin + place.offset) for place in layer.places]
            begin += layer.bytes
        pieces = tuple(piece for layer in layers for piece in layer.pieces)
        return cls(pieces, tuple(places), begin)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Copies of the tensors in ordinary memory of the host."""
        whole = torch.cat([*self.pieces]) if self.pieces else torch.empty(0, dtype=torch.uint8)
        return tuple(place.of(whole) for place in self.places)


class HostStore:
    """Pinned memory of the host that is filled once and never given back.

    Torch rounds pinned blocks up to powers of two, so that it is taken in slabs of :data:`HOST_SLAB` bytes, over whose
    borders tensors go on. Where no memory can be pinned, ordinary memory is used, from which copies are slower.

    Args:
        lanes: Of the device.
        slab: Bytes of a slab.
    """

    def __init__(self, lanes: Lanes, slab: int = HOST_SLAB) -> None:
        self._lanes = lanes
        self._slab = slab
        self._free = torch.empty(0, dtype=torch.uint8)
        #: Bytes that were taken of the host's memory.
        self.bytes = 0
        #: Bytes of it that could not be pinned.
        self.unpinned = 0

    def keep(self, tensors: Sequence[torch.Tensor]) -> HostWeights:
        """Copy the tensors of a layer to the host.

        Args:
            tensors: On any device, contiguous or not.
        """
        places, end = [], 0
        for tensor in tensors:
            place = _Place(math.ceil(end / _ALIGNMENT) * _ALIGNMENT, tensor.shape, tensor.dtype)
            places.append(place)
            end = place.offset + tensor.nbytes
        end = math.ceil(end / _ALIGNMENT) * _ALIGNMENT
        pieces = self._take(end)
        for tensor, place in zip(tensors, places, strict=True):
            _write(tensor.detach().contiguous().view(-1).view(torch.uint8), place.offset, pieces)
        return HostWeights(tuple(pieces), tuple(places), end)

    def _take(self, size: int) -> list[torch.Tensor]:
        found = []
        while size:
            if not self._free.numel():
                self._free = self._new_slab()
            piece = self._free[:size]
            self._free = self._free[piece.numel() :]
            size -= piece.numel()
            found.append(piece)
        return found

    def _new_slab(self) -> torch.Tensor:
        like = torch.empty(self._slab, dtype=torch.uint8, device="meta")
        self.bytes += self._slab
        try:
            return self._lanes.on_host(like)
        except RuntimeError:
            self.unpinned += self._slab
            return torch.empty(self._slab, dtype=torch.uint8)


def _write(row: torch.Tensor, offset: int, pieces: Sequence[torch.Tensor]) -> None:
    """Write bytes into a row that is in pieces, from an offset on."""
    for piece in pieces:
        if offset < piece.numel() and row.numel():
            room = piece[offset : offset + row.numel()]
            room.copy_(row[: room.numel()])
            row = row[room.numel() :]
        offset = max(offset - piece.numel(), 0)


@dataclass(eq=False)
class _Buffer:
    memory: torch.Tensor
    #: Number of the layer whose weights it holds, or that are on their way.
    layer: int | None = None
    #: Event of their copy.
    there: Any = None
    views: tuple[torch.Tensor, ...] = field(default=())


class WeightMover:
    """Brings the weights of layers to the device.

    Args:
        lanes: Of the device.
        layers: Weights of each layer, in the order of the forward pass; not empty.
        device: The device.

    Raises:
        torch.OutOfMemoryError: If there is no room for the buffers.
    """

    def __init__(self, lanes: Lanes, layers: Sequence[HostWeights], device: torch.device) -> None:
        self._lanes = lanes
        self._layers = layers
        like = torch.empty(max(layer.bytes for layer in layers), dtype=torch.uint8, device="meta")
        self._buffers = [_Buffer(lanes.on_device(like, device)) for _ in range(min(EXPERT_LAYERS, len(layers)))]
        self._at = 0
        self._up = True

    def fetch(self, number: int, *, returns: bool) -> tuple[torch.Tensor, ...]:
        """Weights of a layer on the device, for work that is given to it until another layer is asked for.

        The layer that comes next is fetched ahead: the one above in forward, the one below in backward.

        Args:
            number: Number of the layer.
            returns: Whether a backward pass follows, or is on; else the next pass begins at the first layer.
        """
        buffer = self._holding(number)
        if buffer is None:
            buffer = self._another(self._holding(self._at))
            self._copy(number, buffer)
        self._lanes.computing().wait_event(buffer.there)
        if number != self._at:
            self._up = number > self._at or number == 0
        self._at = number
        following = self._next(returns=returns)
        if following is not None and self._holding(following) is None:
            self._copy(following, self._another(buffer))
        return buffer.views

    def _next(self, *, returns: bool) -> int | None:
        """Number of the layer that will be asked for; None where that is not known, as at the turn to backward."""
        if not self._up:
            return self._at - 1 if self._at else None
        if self._at + 1 < len(self._layers):
            return self._at + 1
        return None if returns else 0

    def _holding(self, number: int) -> _Buffer | None:
        return next((buffer for buffer in self._buffers if buffer.layer == number), None)

    def _another(self, buffer: _Buffer | None) -> _Buffer:
        return next((one for one in self._buffers if one is not buffer), self._buffers[0])

    def _copy(self, number: int, buffer: _Buffer) -> None:
        """Copy a layer into a buffer, after all that the device has been given to do so far."""
        lanes, layer, done = self._lanes, self._layers[number], 0
        lanes.back.wait_event(lanes.computing().record_event())
        for piece in layer.pieces:
            lanes.copy(buffer.memory[done : done + piece.numel()], piece, lanes.back)
            done += piece.numel()
        buffer.layer, buffer.there = number, lanes.back.record_event()
        buffer.views = tuple(place.of(buffer.memory) for place in layer.places)

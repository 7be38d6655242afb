"""Experts in host memory: the 4-bit experts of a mixture that do not fit on the GPU, fetched layer by layer.

During loading, each matrix of experts is quantized on the GPU and copied to the host before the next, so only one is
there at a time. Only its small tables stay on the GPU. Afterwards a :class:`WeightMover` keeps the experts of the
current layer and of the next one on the GPU.

A layer fetches its experts when it starts, so that the next layer's are copied while it computes, and each product asks
again, in backward too. The experts are thus correct with activations recomputed or kept, in training, evaluation and
generation, and the numbers are bit-equal to those of experts on the GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.memory.sizes import EXPERT_LAYERS, HOST_SLAB, Arithmetic
from core.memory.weights import experts_on_host, weight_parts
from core.models.architecture.measuring import load_architecture
from core.units import format_bytes
from core.worker.model.activation_offload import CudaLanes
from core.worker.model.experts import ExpertsParams4bit, experts_of, matrix_names

#: Alignment of tensors in a buffer, which suits every dtype and the bus.
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
    """Tensors of a layer on the host, as pieces of one row of bytes.

    Args:
        pieces: Bytes, in order.
        places: Places of the tensors in the row.
        bytes: Length of the row.
    """

    pieces: tuple[torch.Tensor, ...]
    places: tuple[_Place, ...]
    bytes: int

    @classmethod
    def joined(cls, layers: Sequence[HostWeights]) -> HostWeights:
        """Tensors that were kept one by one, joined as those of one layer.

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
        """Copies of the tensors in pageable host memory."""
        whole = torch.cat([*self.pieces]) if self.pieces else torch.empty(0, dtype=torch.uint8)
        return tuple(place.of(whole) for place in self.places)


class HostStore:
    """Pinned host memory that is filled once and never freed.

    Torch rounds pinned blocks up to powers of two, so memory comes in slabs of :data:`HOST_SLAB` bytes, and tensors may
    cross their borders. Where memory cannot be pinned, pageable memory is used, from which copies are slower.

    Args:
        lanes: The device's.
        slab: Bytes of a slab.
    """

    def __init__(self, lanes: CudaLanes, slab: int = HOST_SLAB) -> None:
        self._lanes = lanes
        self._slab = slab
        self._free = torch.empty(0, dtype=torch.uint8)
        #: Bytes allocated on the host.
        self.bytes = 0
        #: Of these, bytes that could not be pinned.
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
    """Write bytes into a row in pieces, starting at an offset."""
    for piece in pieces:
        if offset < piece.numel() and row.numel():
            room = piece[offset : offset + row.numel()]
            room.copy_(row[: room.numel()])
            row = row[room.numel() :]
        offset = max(offset - piece.numel(), 0)


@dataclass(eq=False)
class _Buffer:
    memory: torch.Tensor
    #: Number of the layer whose weights it holds or receives.
    layer: int | None = None
    #: Event of their copy.
    there: Any = None
    views: tuple[torch.Tensor, ...] = field(default=())


class WeightMover:
    """Fetches the weights of layers to the device.

    Args:
        lanes: The device's.
        layers: Weights of each layer, in the order of the forward pass; not empty.
        device: The device.

    Raises:
        torch.OutOfMemoryError: If there is no room for the buffers.
    """

    def __init__(self, lanes: CudaLanes, layers: Sequence[HostWeights], device: torch.device) -> None:
        self._lanes = lanes
        self._layers = layers
        like = torch.empty(max(layer.bytes for layer in layers), dtype=torch.uint8, device="meta")
        self._buffers = [_Buffer(lanes.on_device(like, device)) for _ in range(min(EXPERT_LAYERS, len(layers)))]
        self._at = 0
        self._up = True

    def fetch(self, number: int, *, returns: bool) -> tuple[torch.Tensor, ...]:
        """Weights of a layer on the device, for work queued until another layer is fetched.

        The next layer is prefetched: the one above in forward, the one below in backward.

        Args:
            number: Number of the layer.
            returns: True if a backward pass follows or is running; else the next pass starts at the first layer.
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
        """Number of the layer fetched next; None where that is unknown, as at the turn to backward."""
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
        """Copy a layer into a buffer, after all work queued on the device so far."""
        lanes, layer, done = self._lanes, self._layers[number], 0
        lanes.back.wait_event(lanes.computing().record_event())
        for piece in layer.pieces:
            lanes.copy(buffer.memory[done : done + piece.numel()], piece, lanes.back)
            done += piece.numel()
        buffer.layer, buffer.there = number, lanes.back.record_event()
        buffer.views = tuple(place.of(buffer.memory) for place in layer.places)


#: Memory on a GPU beside the weights for generation: keys, values and the workspace of products.
_ANSWER_ROOM = 1 << 30


@dataclass(frozen=True)
class _Source:
    """Source of a layer's packed experts and the scales of their blocks, in place of the parameter."""

    read: Callable[[], tuple[torch.Tensor, ...]]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Source:
        return self

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        data, absmax = self.read()
        return data, absmax


class ExpertOffload:
    """The experts of a model in host memory.

    Args:
        lanes: The device's.
        device: The device.
    """

    def __init__(self, lanes: CudaLanes, device: torch.device) -> None:
        self._lanes = lanes
        self._device = device
        self.store = HostStore(lanes)
        self.mover: WeightMover | None = None
        self._kept: dict[str, HostWeights] = {}

    def take(self, name: str, parameter: ExpertsParams4bit) -> None:
        """Move the weights of a parameter to the host.

        Args:
            name: Its name in the model.
            parameter: The parameter, which keeps its shapes only.
        """
        state = parameter.quant_state
        kept = self._kept[name] = self.store.keep([parameter.data, state.absmax])
        state.source = _Source(lambda: tuple(tensor.to(self._device) for tensor in kept.tensors()))
        parameter.data, state.absmax = _stand_in(parameter.data), _stand_in(state.absmax)

    def install(self, model: Any, layers: list[Any]) -> None:
        """Fetch the experts layer by layer from now on.

        Args:
            model: The model of transformers, loaded.
            layers: Its decoder layers in order.

        Raises:
            torch.OutOfMemoryError: If the GPU has no room for the buffers.
        """
        found = [(layer, list(self._parameters_of(model, layer))) for layer in layers]
        found = [(layer, parameters) for layer, parameters in found if parameters]
        if not found:
            return
        weights = [HostWeights.joined([self._kept[name] for name, _ in parameters]) for _, parameters in found]
        mover = self.mover = WeightMover(self._lanes, weights, self._device)
        for number, (layer, parameters) in enumerate(found):
            layer.register_forward_pre_hook(functools.partial(_begin, mover, number))
            for place, (_, parameter) in enumerate(parameters):
                parameter.quant_state.source = _Source(functools.partial(_fetch, mover, number, 2 * place))

    def _parameters_of(self, model: Any, layer: Any) -> Iterator[tuple[str, ExpertsParams4bit]]:
        inside = set(layer.modules())
        for path, module in experts_of(model):
            for matrix in matrix_names(module) if module in inside else ():
                if (name := f"{path}.{matrix}") in self._kept:
                    yield name, getattr(module, matrix)

    def tell(self) -> tuple[str, str]:
        """The place of the experts as a message, and advice where it is slow; else an empty hint."""
        size = format_bytes(self.store.bytes)
        if self.store.unpinned:
            return (
                f"{format_bytes(self.store.unpinned)} of {size} of experts are in ordinary memory of the machine, as "
                "no more could be pinned.",
                "Copies to the card take longer; raise the limit of locked memory (ulimit -l) or close other programs.",
            )
        return f"The experts are in {size} of the machine's memory, and are brought to the card layer by layer.", ""


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape that stores a single element."""
    return tensor.new_zeros(()).expand(tensor.shape)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # asynchronous copies
def _begin(mover: WeightMover, number: int, *_: Any) -> None:
    """Fetch at the start of a layer; without gradients no backward pass follows."""
    mover.fetch(number, returns=torch.is_grad_enabled())


def _fetch(mover: WeightMover, number: int, place: int) -> tuple[torch.Tensor, ...]:
    return mover.fetch(number, returns=True)[place : place + 2]


def needs_host_experts(base: Path, device: torch.device, width: int, keep: Sequence[str] = ()) -> bool:
    """True if a 4-bit model loaded for generation has no room for its experts on a GPU.

    Args:
        base: Its directory.
        device: The device.
        width: Bytes of an element of the arithmetic.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
    """
    if device.type != "cuda":
        return False
    try:
        model = load_architecture(base)
    except UserError:
        return False
    how = Arithmetic(width, autocast=True, quantized=True, cuda=True)
    free, _ = torch.cuda.mem_get_info(device)
    needed = sum(part.bytes for part in weight_parts(model, how, 0, keep)) + _ANSWER_ROOM
    return bool(experts_on_host(model, keep).layers) and needed > free


def cuda_offload(device: torch.device) -> ExpertOffload | None:
    """Offload of experts from a device; None for a CPU.

    Args:
        device: The device.
    """
    return ExpertOffload(CudaLanes(), device) if device.type == "cuda" else None

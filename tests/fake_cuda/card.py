"""``torch.cuda`` as it answers with a card, for builds of torch without it."""

from __future__ import annotations

import collections
import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Card:
    """A card.

    Args:
        name: As its driver has it.
        capability: Compute capability; of an AMD card the first two numbers of its architecture.
        total: Bytes of memory.
        processors: Multiprocessors.
        architecture: The architecture of an AMD card; empty for NVIDIA's.
    """

    name: str
    capability: tuple[int, int]
    total: int
    processors: int
    architecture: str = ""


CARDS = {
    "4090": Card("NVIDIA GeForce RTX 4090", (8, 9), 25_393_692_672, 128),
    "3090": Card("NVIDIA GeForce RTX 3090", (8, 6), 25_294_995_456, 82),
    "7900": Card("AMD Radeon RX 7900 XTX", (11, 0), 25_753_026_560, 48, "gfx1100"),
}
#: The device of the card.
DEVICE = torch.device("cuda", 0)
#: Bytes that the driver and a desktop have taken.
_TAKEN = 700 << 20


class Storages:
    """A set of storages, each as long as it lives."""

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Add the storage of a tensor."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._known[key] = weakref.ref(storage, lambda _gone: self._known.pop(key, None))

    def __contains__(self, tensor: torch.Tensor) -> bool:
        known = self._known.get(tensor.untyped_storage()._cdata)
        return known is not None and known() is not None


class _Event:
    def query(self) -> bool:
        return True

    def record(self, _stream: Any = None) -> None: ...

    def wait(self, _stream: Any = None) -> None: ...


class _Stream:
    """A stream; all are one, in which work is done in order."""

    def wait_event(self, _event: Any) -> None: ...

    def wait_stream(self, _stream: Any) -> None: ...

    def record_event(self, _event: Any = None) -> _Event:
        return _Event()


#: Tensors in pinned memory.
pinned = Storages()


def install(card: Card, waits: Callable[[str], None]) -> None:
    """Let ``torch.cuda`` answer for a card, for the rest of this process.

    Args:
        card: The card.
        waits: Called where the host would wait for the device, with the reason.
    """
    is_amd = bool(card.architecture)
    torch.version.cuda, torch.version.hip = (None, "7.2.0") if is_amd else ("13.0", None)
    properties = SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        total_memory=card.total,
        multi_processor_count=card.processors,
        warp_size=32,
        uuid="00000000-0000-0000-0000-000000000000",
        gcnArchName=card.architecture,
    )

    class Stream(_Stream):
        def synchronize(self) -> None:
            waits("a stream is synchronized")

    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "_is_in_bad_fork": False,
        "init": None,
        "_lazy_init": None,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_properties": properties,
        "get_device_capability": card.capability,
        "get_device_name": card.name,
        "get_arch_list": [card.architecture] if is_amd else ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"],
        "is_bf16_supported": True,
        "mem_get_info": (card.total - _TAKEN, card.total),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "set_rng_state": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "get_per_process_memory_fraction": 1.0,
        "set_per_process_memory_fraction": None,
    }
    functions: dict[str, Any] = {
        **{name: _answering(answer) for name, answer in answers.items()},
        "memory_stats": lambda *_args: collections.defaultdict(int),
        "get_rng_state": lambda *_args: torch.zeros(16, dtype=torch.uint8),
        "synchronize": lambda *_args: waits("the device is synchronized"),
        "Stream": Stream,
        "current_stream": lambda *_args: Stream(),
        "default_stream": lambda *_args: Stream(),
        "stream": lambda *_args: contextlib.nullcontext(),
        "device": lambda *_args: contextlib.nullcontext(),
    }
    for name, function in functions.items():
        setattr(torch.cuda, name, function)
    _install_uploads(waits)


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *_args, **_named: answer


def _install_uploads(waits: Callable[[str], None]) -> None:
    """Functions that take numbers from the host: torch makes their tensors where no mode sees it."""
    usual, get, put = torch.tensor, torch.Tensor.__getitem__, torch.Tensor.__setitem__

    def pin(self: torch.Tensor, *_args: Any) -> torch.Tensor:
        made = self.clone()
        pinned.add(made)
        return made

    def tensor(data: Any, *, dtype: Any = None, device: Any = None, **named: Any) -> torch.Tensor:
        here = usual(data, dtype=dtype, **named)
        if device is None or torch.device(device).type != DEVICE.type:
            return here
        waits("numbers are uploaded from pageable memory")
        return torch.empty(here.shape, dtype=here.dtype, device=DEVICE)

    def index(x: torch.Tensor, wanted: Any) -> Any:
        """An index with its lists uploaded, for a tensor on the card."""
        if isinstance(wanted, tuple):
            return tuple(index(x, one) for one in wanted)
        return tensor(wanted, device=x.device) if isinstance(wanted, list) and x.is_cuda else wanted

    def tolist(self: FakeTensor) -> Any:
        if self.is_cuda:
            waits(f"values of {self.dtype} are read")
        value: Any = 0.0 if self.is_floating_point() else 0
        for size in reversed(self.shape):
            value = [value] * size
        return value

    functions: list[tuple[Any, str, Any]] = [
        (torch, "tensor", tensor),
        (torch.Tensor, "pin_memory", pin),
        (torch.Tensor, "__getitem__", lambda x, wanted: get(x, index(x, wanted))),
        (torch.Tensor, "__setitem__", lambda x, wanted, value: put(x, index(x, wanted), value)),
        (FakeTensor, "tolist", tolist),
    ]
    for owner, name, function in functions:
        setattr(owner, name, function)


class OnCard(TorchFunctionMode):
    """Empty tensors that are asked for on the CPU by name are made on the card."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function."""
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") == "cpu":
            kwargs = {**kwargs, "device": DEVICE}
        return func(*args, **kwargs)

"""A device on the CPU, whose streams do their work late and in any order that their events allow."""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from core.worker.model.activation_offload import CudaLanes


def _unset(dtype: torch.dtype) -> float:
    """A value for uninitialized memory, which no test writes."""
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


class Event:
    """There once its stream has come so far."""

    def __init__(self) -> None:
        self.there = False


class Stream:
    """Work that is done in order, by :meth:`Device.run`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[Callable[[], bool]] = deque()

    def do(self, work: Callable[[], object]) -> None:
        self.waiting.append(lambda: (work(), True)[1])

    def wait_event(self, event: Event) -> None:
        self.waiting.append(lambda: event.there)

    def record_event(self) -> Event:
        event = Event()
        self.do(lambda: setattr(event, "there", True))
        return event


class Device(CudaLanes):
    """Streams and memory. The compute stream overwrites freed memory when it reaches that point, as the next owner of
    the block would."""

    def __init__(self) -> None:
        self.main, self.out, self.back = Stream("main"), Stream("out"), Stream("back")
        self.fetched = 0
        self.in_use = 0
        self.most = 0
        self.full = False

    def computing(self) -> Stream:
        return self.main

    def on_host(self, like: torch.Tensor) -> torch.Tensor:
        return torch.full(like.shape, _unset(like.dtype), dtype=like.dtype)

    def on_device(self, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.fetched += 1
        return self.new(tuple(like.shape), like.dtype)

    def new(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        block, unset = np.zeros(shape, dtype=torch.empty(0, dtype=dtype).numpy().dtype), _unset(dtype)
        tensor = torch.from_numpy(block)
        self.main.do(lambda: block.fill(unset))  # uninitialized
        self.in_use += 1
        self.most = max(self.most, self.in_use)
        weakref.finalize(tensor, self._free, block, unset)
        return tensor

    def _free(self, block: Any, unset: float) -> None:
        self.in_use -= 1
        self.main.do(lambda: block.fill(unset))

    def copy(self, into: torch.Tensor, of: torch.Tensor, stream: Any) -> None:
        # Raw memory, without references as on a device: a tensor freed too early loses its values.
        target, source = into.numpy(), of.numpy()
        stream.do(lambda: np.copyto(target, source))

    def run(self, order: random.Random, steps: int | None = None) -> None:
        """Do the queued work, or a number of its steps."""
        done = 0
        while steps is None or done < steps:
            ready = [stream for stream in (self.main, self.out, self.back) if stream.waiting]
            order.shuffle(ready)
            for stream in ready:
                if stream.waiting[0]():
                    stream.waiting.popleft()
                    done += 1
                    break
            else:
                assert not ready, "the streams wait for one another"
                return


class PromptDevice(CudaLanes):
    """Lanes whose copies are done at once, and counted, for models of the CPU. The host's memory is not torch's, as
    pinned memory is not the device's; its shapes are listed."""

    def __init__(self) -> None:
        self.main, self.out, self.back = (Stream(name) for name in ("main", "out", "back"))
        self.copies = {"out": 0, "back": 0}
        self.shapes: list[tuple[int, ...]] = []

    def computing(self) -> Stream:
        return self.main

    def on_host(self, like: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(like.shape))
        return torch.from_numpy(np.empty(like.nbytes, np.uint8)).view(like.dtype).view(like.shape)

    def on_device(self, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        return torch.empty_like(like, device="cpu")

    def copy(self, into: torch.Tensor, of: torch.Tensor, stream: Any) -> None:
        self.copies[stream.name] += 1
        into.copy_(of)
